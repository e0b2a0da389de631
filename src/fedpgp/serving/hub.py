"""Upload an exported model to the Hugging Face hub, or to a server with the same interface."""

from fnmatch import fnmatch
from pathlib import Path

from fedpgp.errors import OutputError
from fedpgp.serving.export import CARD, PREPARER, READER, is_export

WRITTEN = (
    CARD, READER, PREPARER, "prompt.safetensors", "prompt.json", "head.safetensors", "classes.json", "model.onnx",
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "*.model", "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
    "preprocess_cfg.json",
)  # fmt: skip
TEXT_CONFIG = Path("text/config.json")  # config of the text tower in some OpenCLIP models


def check_name(repo_id: str) -> None:
    """Raise OutputError if a name does not have the form "OWNER/NAME"."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        _owner, _name = repo_id.split("/")  # the hub's own check does not require an owner
    except ValueError as error:
        raise OutputError(
            where="repo_id",
            allowed="OWNER/NAME, of letters, digits, '-', '_' and '.'",
            got=repo_id,
            remedy="Use, for example, --upload me/zebras",
        ) from error


def upload(
    directory: Path | str,
    repo_id: str,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = True,
) -> str:
    """Upload the files of an export as one commit, and return the address of the repository.

    The repository is created if it does not exist.

    Parameters
    ----------
    directory
        The export; only its files are uploaded.
    repo_id
        "OWNER/NAME".
    endpoint
        Address of the server; None means the hub.
    token
        Access token; None means the token of `hf auth login`, which is used only for the hub.
    private
        Whether only the owner can read the repository. If True, an existing public repository is refused.

    Returns
    -------
    str
        The address.

    Raises
    ------
    OutputError
        If the directory is not an export or contains other files, if the server refuses the name or the token, or if
        the server cannot be reached. Files uploaded before the error stay on the server.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_name(repo_id)
    directory = Path(directory)
    files = _files(directory)
    server = (endpoint or constants.ENDPOINT).rstrip("/")
    if token is None and server == constants.ENDPOINT:
        token = get_token()
    if token is None:
        raise OutputError(
            "an upload needs a token with write access",
            where=server,
            remedy="Log in with `hf auth login`" if server == constants.ENDPOINT else "Pass the token as token=",
        )
    api = HfApi(endpoint=server, token=token, library_name="fedpgp")
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and api.model_info(repo_id).private is False:
            raise OutputError(
                f"{repo_id} already exists and is public",
                where=server,
                remedy="Choose another repository, or publish this export too with --public (in Python, private=False)",
            )
        api.upload_folder(
            repo_id=repo_id, folder_path=directory, allow_patterns=files, commit_message="Upload with fedpgp"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or f"status {status}"
        remedies = {
            401: "Use a token that is valid on this server",
            403: "Use a token with write access, or another owner",
            404: "Choose an owner and a repository to which this token has write access",
        }
        raise OutputError(
            f"the server refuses {repo_id} ({reason})",
            where=server,
            remedy=remedies.get(status, "Try again later; the export is still here"),
        ) from error
    except OutputError:
        raise
    except Exception as error:  # an error of httpx or httpx2; for a large file, it is the cause of another error
        raise OutputError(
            f"the server cannot be reached ({error.__cause__ or error})",
            where=server,
            remedy="Try again later; the export is still here",
        ) from error
    return str(url)


def _files(directory: Path) -> list[str]:
    """Return the files of an export, relative to its directory; raise OutputError if it contains anything else.

    A run's own directory contains private parts of clients, so files are never uploaded just because they are in the
    same directory.
    """
    if not is_export(directory):
        raise OutputError(
            where=str(directory),
            allowed="a directory that fedpgp export wrote",
            remedy="Export the run, and upload the export",
        )
    inside = sorted(path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    files = [path for path in inside if not path.name.startswith(".")]
    others = [
        str(path)
        for path in files
        if not any(fnmatch(path.name, name) for name in WRITTEN)
        or (path.parent != Path() and path != TEXT_CONFIG)
        or (directory / path).is_symlink()
    ]
    if others:
        raise OutputError(
            f"the directory must contain only files that fedpgp export writes, but contains {', '.join(others[:3])}",
            where=str(directory),
            remedy="Remove the other files, or export again",
        )
    return [path.as_posix() for path in files]
