"""An exported model on the Hugging Face hub, or on a server that speaks as it does."""

from fnmatch import fnmatch
from pathlib import Path

from fedpgp.errors import OutputError
from fedpgp.serving.export import CARD, READER, is_export

WRITTEN = (
    CARD, READER, "prompt.safetensors", "prompt.json", "head.safetensors", "classes.json", "model.onnx", "config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "*.model",
    "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "preprocess_cfg.json",
)  # fmt: skip
TEXT_CONFIG = Path("text/config.json")  # of the text tower of some OpenCLIP models


def check_name(repo_id: str) -> None:
    """Raises OutputError for what is no "OWNER/NAME"."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        _owner, _name = repo_id.split("/")  # the hub's own check does not ask for an owner
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
    """Uploads what `fedpgp export` wrote as one commit, into a repository that is made if it is missing; its address.

    directory: an export, whose files go up and nothing else. repo_id: "OWNER/NAME". endpoint: None takes the hub;
    token: None takes that of `hf auth login`, for the hub alone. private: whether only the owner may read it; a public
    repository that is there already is refused then.

    Raises OutputError where the directory is no export or holds more than one, where the name or the token is refused,
    and where the server cannot be reached. What had been uploaded before stays.
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
    except Exception as error:  # httpx's or httpx2's, as huggingface_hub has it; of a large file it is the cause
        raise OutputError(
            f"the server cannot be reached ({error.__cause__ or error})",
            where=server,
            remedy="Try again later; the export is still here",
        ) from error
    return str(url)


def _files(directory: Path) -> list[str]:
    """What of an export goes up, relative to it; raises OutputError where it is none, or holds something else.

    A run's own directory keeps private parts of clients: nothing may go up because it lies in the same place.
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
