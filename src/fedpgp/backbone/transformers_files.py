"""Read the files of a dual encoder of transformers."""

import re
from pathlib import Path
from typing import Any

import torch

from fedpgp.backbone import files, limits, open_clip_models
from fedpgp.backbone.archive import read_tensors
from fedpgp.backbone.convert import END
from fedpgp.backbone.foreign_configs import check_room, config_of, processor_config
from fedpgp.backbone.foreign_files import AGAIN, inside, read_json
from fedpgp.backbone.foreign_tokenizers import largest_token, staged
from fedpgp.backbone.transformers_models import FAMILIES
from fedpgp.errors import CheckpointError, first_line

NEWER = "model*.safetensors"  # transformers' weights
OLDER = "pytorch_model*.bin"  # transformers' weights if there are no files in the newer format
SINGLE = {NEWER: "model.safetensors", OLDER: "pytorch_model.bin"}
SHARD = re.compile(r"\w[\w.-]*")  # a file in the same directory
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")  # weights of any library, for messages
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")  # a tokenizer has one of them


def read_transformers(name: str, directory: Path, dtype: torch.dtype) -> files.Checkpoint:
    """Read a dual encoder of transformers.

    Parameters
    ----------
    name
        Name of the checkpoint in messages.
    directory
        The directory to read.
    dtype
        Precision of the weights.

    Raises
    ------
    CheckpointError
        If the files are incomplete, not from a dual encoder, or not safe to read.
    """
    import transformers

    older = any(directory.glob(OLDER)) and not any(directory.glob(NEWER))
    found = {file for pattern in (*files.FILES, *([OLDER] if older else [])) for file in directory.glob(pattern)}
    try:
        model = read_model(name, directory, dtype)
        kind = model.config.model_type
        with staged(directory, config={"model_type": kind}, preprocessor_config=processor_config(directory)) as safe:
            local = {"local_files_only": True, "trust_remote_code": False}
            processor = transformers.AutoImageProcessor.from_pretrained(safe, backend="pil", **local)
            tokenizer = _tokenizer(name, directory, safe, kind, model.config.text_config.vocab_size)
    except CheckpointError:
        raise
    except Exception as error:  # the loaders raise many kinds of errors; the user needs one line
        raise CheckpointError(
            f"the directory {directory} cannot be read ({first_line(error)})",
            where=f"checkpoint {name!r}",
            remedy="Download config.json, model.safetensors, and the tokenizer and preprocessor files",
        ) from error
    return files.Checkpoint(model, processor, tokenizer, sorted(map(inside, found | {*_weights(directory)})))


def read_model(name: str, directory: Path, dtype: torch.dtype) -> Any:
    """Read the model of a directory of transformers.

    Parameters
    ----------
    name
        Name of the checkpoint in messages.
    directory
        The directory to read.
    dtype
        Precision of the weights.

    Raises
    ------
    CheckpointError
        If the files are incomplete, not from a dual encoder, or not safe to read.
    """
    import transformers

    incomplete = CheckpointError(
        f"the directory {directory} must contain config.json and model.safetensors, or {open_clip_models.CONFIG} and"
        f" {files.OPEN_CLIP_WEIGHTS[0]}, but contains {found_in(directory)}",
        where=f"checkpoint {name!r}",
        remedy="Download the missing files, or name a file of weights instead of the directory",
    )
    file = directory / "config.json"
    if not file.is_file():
        raise incomplete
    content = read_json(file)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(
            where=f"model_type in {file}",
            allowed=f"one of {', '.join(map(repr, FAMILIES))}",
            got=kind if isinstance(kind, str) else type(kind).__name__,
            remedy="Choose a dual encoder, such as openai/clip-vit-base-patch16",
        )
    if not has_transformers_weights(directory):
        raise incomplete
    family = getattr(transformers, FAMILIES[kind])
    config = config_of(kind, content, file)
    weights = read_tensors(*_weights(directory))
    check_room(lambda: family(config), weights, file)
    model, report = family.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    if missing := report["missing_keys"]:
        others = report["unexpected_keys"]
        unexpected = f", and it has unexpected weights, for example {min(others)}" if others else ""
        raise CheckpointError(
            f"the directory {directory} lacks {len(missing)} weights of a {FAMILIES[kind]}, for example"
            f" {min(missing)}{unexpected}",
            where=f"checkpoint {name!r}",
            remedy="Download it again, or choose a complete checkpoint",
        )
    return model


def _weights(directory: Path) -> list[Path]:
    """Return the files of weights: a single file, or the files that an index names."""
    pattern = NEWER if any(directory.glob(NEWER)) else OLDER
    single = directory / SINGLE[pattern]
    index = directory / f"{single.name}.index.json"
    if single.exists() or not index.exists():
        return [inside(single)]
    named = read_json(index).get("weight_map")
    shards = {*named.values()} if isinstance(named, dict) and all(isinstance(v, str) for v in named.values()) else {""}
    if len(shards) > limits.SHARDS or not all(
        SHARD.fullmatch(shard) and shard.endswith(single.suffix) for shard in shards
    ):
        raise CheckpointError(
            where=f"weight_map in {index}",
            allowed=f"the names of at most {limits.SHARDS} {single.suffix} files in the same directory",
            got=next((shard for shard in sorted(shards) if not SHARD.fullmatch(shard)), len(shards)),
            remedy=AGAIN,
        )
    return [inside(directory / shard) for shard in sorted(shards)]


def has_transformers_weights(directory: Path) -> bool:
    """Return whether a directory contains weights under the file names of transformers."""
    return (directory / "config.json").is_file() and any(
        True for pattern in (NEWER, OLDER) for _ in directory.glob(pattern)
    )


def found_in(directory: Path) -> str:
    """Return the names of the configs and weights in a directory, for a message."""
    names = sorted({file.name for pattern in ("*config.json", *WEIGHTS) for file in directory.glob(pattern)})
    return ", ".join(names) or "neither a config nor weights"


def _tokenizer(name: str, directory: Path, safe: Path, kind: str, vocabulary: int) -> Any:
    """Return the tokenizer of a directory; without one, OpenAI's if the text tower uses OpenAI's vocabulary.

    `safe` is a copy of the directory with the files that are safe to read.
    """
    import transformers

    if any(True for pattern in VOCABULARIES for _ in safe.glob(pattern)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(safe, local_files_only=True, trust_remote_code=False)
        words = len(tokenizer) - len({*tokenizer.all_special_ids})
        if words > 0 and (kind != "clip" or largest_token(tokenizer) < vocabulary):
            return tokenizer
        found = f"contains a tokenizer of {len(tokenizer)} tokens, of which {words} are words"
    else:
        found, words = f"contains no tokenizer ({', '.join(VOCABULARIES)})", 0
    if kind == "clip" and vocabulary == END + 1 and words <= 0:
        return files.openai_tokenizer()
    raise CheckpointError(
        f"the directory {directory} {found}, but the text tower reads {vocabulary} tokens",
        where=f"checkpoint {name!r}",
        remedy="Download the tokenizer's files",
    )
