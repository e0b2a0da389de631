"""Find and read the files of a checkpoint from a name, a directory or a hub id."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedpgp import assets
from fedpgp.backbone import efficientnet, limits, open_clip_models
from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.convert import HEAD, to_clip_model
from fedpgp.backbone.foreign_configs import check_images, check_values, model_type_of
from fedpgp.backbone.foreign_files import content_of, inside, read_json
from fedpgp.backbone.foreign_tokenizers import TOKENIZER_FILES, largest_token, staged
from fedpgp.backbone.open_clip_processor import OpenClipProcessor
from fedpgp.backbone.tokens import AnyTokenizer
from fedpgp.errors import CheckpointError, first_line
from fedpgp.runtime.files import exists

PHOTOCLIP = "photoclip"
EMBEDDED = (PHOTOCLIP, "pictoclip")
TOKENIZER = "clip-tokenizer"  # OpenAI's tokenizer, for checkpoints without one
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
CARD = "README.md"
LICENCE = re.compile(r"""^license:[ \t]*["']?([\w.+-]{1,80})["']?[ \t]*$""", re.MULTILINE)
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATCH = 16  # pixels of a patch in OpenCLIP's image tower if its config does not state them
TEXT_HEADS = 8  # heads of OpenCLIP's text tower if its config does not state them
HUB_PREFIX = "hf-hub:"  # marks a hub id whose OpenCLIP files must be read
OF_TOWER = {"final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None, "ls_init_value": None}
OF_TOWER |= {"block_type": None, "qk_norm": False, "scale_heads": False, "scale_attn": False, "scale_fc": False}
# Values of OpenCLIP's config in a CLIP-shaped text tower; a missing key has the same meaning.
CLIP_TEXT: dict[str, Any] = OF_TOWER | {
    "no_causal_mask": False,
    "pool_type": "argmax",
    "hf_model_name": None,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
}
OPENAI_TOKENIZER = {"hf_tokenizer_name": None}
PLAIN_TOKENS: dict[str, Any] = {"tokenizer_kwargs": {}, "tokenizer_mode": None}  # for any tokenizer
CLIP_VALUES: Mapping[str, Mapping[str, Any]] = {
    "text_cfg": CLIP_TEXT | OPENAI_TOKENIZER,
    "vision_cfg": OF_TOWER | {"pool_type": "tok", "timm_model_name": None, "attentional_pool": False},
    "preprocess_cfg": {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"},
}


class Checkpoint(NamedTuple):
    """Parts of a checkpoint, in the types of transformers.

    Attributes
    ----------
    model
        The model.
    processor
        The preprocessing of images.
    tokenizer
        The tokenizer.
    files
        The files from which the parts were read.
    """

    model: Any
    processor: Any
    tokenizer: Any
    files: list[Path]


class OpenClipFiles(NamedTuple):
    """Directory of an OpenCLIP checkpoint that is read without the library, and the values in its config.

    Attributes
    ----------
    directory
        The directory.
    weights
        The file of weights.
    vision
        `vision_cfg` of the config.
    preprocessing
        `preprocess_cfg` of the config.
    size
        Height and width of the images, in pixels.
    heads
        Attention heads of the text tower.
    quick_gelu
        Whether the activation is OpenAI's approximation of GELU.
    own_tokenizer
        Whether the directory contains a tokenizer.
    """

    directory: Path
    weights: Path
    vision: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    size: tuple[int, int]
    heads: int
    quick_gelu: bool
    own_tokenizer: bool


def find_checkpoint(name: str) -> Path:
    """Return the directory or file of a checkpoint; a hub id is downloaded.

    Parameters
    ----------
    name
        An embedded checkpoint, a directory, a file, or a hub id.

    Raises
    ------
    CheckpointError
        If the checkpoint does not exist or cannot be downloaded.
    """
    if name in EMBEDDED:
        return assets.verified(name)
    if exists(name):
        return Path(name)
    name = name.removeprefix(HUB_PREFIX)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            where="checkpoint",
            allowed="a directory or file that exists, a hub id such as openai/clip-vit-base-patch16, or an embedded"
            f" checkpoint ({' or '.join(EMBEDDED)})",
            got=name,
            remedy="Correct the name; a path must not start with ~",
        )
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, allow_patterns=[*FILES, CARD]))
        if (directory / open_clip_models.CONFIG).is_file() and not any(directory.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=[OPEN_CLIP_WEIGHTS[1]])
        return directory
    except Exception as error:  # network, authorization and name errors of several libraries
        raise CheckpointError(
            f"it is not a local directory and cannot be downloaded from the hub ({first_line(error)})",
            where=f"checkpoint {name!r}",
            remedy=f"Use --backbone {PHOTOCLIP}, an embedded checkpoint for photographs, or download the checkpoint"
            " elsewhere and name its directory with --backbone",
        ) from error


def licence_of(directory: Path) -> str:
    """Return the licence in the header of a model card, or "not stated"."""
    try:
        header = content_of(directory / CARD, limits.CARD).decode().split("---")[1]
    except (OSError, ValueError, IndexError, CheckpointError):  # the card may be any text or anything else
        return "not stated"
    found = LICENCE.search(header)
    return found[1] if found else "not stated"


def read_open_clip(directory: Path, dtype: torch.dtype) -> Checkpoint | OpenClipFiles | open_clip_models.OpenClip:
    """Read a checkpoint of OpenCLIP.

    The library is not needed for CLIP's own towers, and for EfficientNet-Lite0 with CLIP's text tower.

    Parameters
    ----------
    directory
        The directory to read.
    dtype
        Precision of the weights.

    Raises
    ------
    CheckpointError
        If the config is not from OpenCLIP, or if weights are missing.
    """
    file = directory / open_clip_models.CONFIG
    content = read_json(file)
    try:
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        sections = {**config, "preprocess_cfg": preprocessing}
        check_values(sections, file)
        of_clip = all(agrees(sections[section], values) for section, values in CLIP_VALUES.items())
        vision, text = config["vision_cfg"], config["text_cfg"]
        efficient = efficientnet.declared(vision) and agrees(text, CLIP_TEXT | PLAIN_TOKENS)
        size = vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else map(int, size)
        quick, heads = bool(config.get("quick_gelu", False)), int(text.get("heads", 0))
        vision_head = int(vision.get("head_width", HEAD))
        check_images((width, height), int(vision.get("patch_size") or PATCH), str(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"this is not a config of OpenCLIP ({first_line(error)})", where=str(file), remedy="Download it again"
        ) from error
    weights = next((inside(directory / name) for name in OPEN_CLIP_WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise CheckpointError(
            f"the directory must contain {' or '.join(OPEN_CLIP_WEIGHTS)}",
            where=f"checkpoint {directory}",
            remedy="Download the missing file",
        )
    if efficient:
        return OpenClipFiles(
            directory,
            weights,
            vision,
            preprocessing,
            (height, width),
            heads or TEXT_HEADS,
            quick,
            bool(text.get("hf_tokenizer_name")),
        )
    if not of_clip:
        return open_clip_models.read_directory(directory, content, weights, dtype)
    shape = {"quick_gelu": quick, "vision_head": vision_head, "text_heads": heads or None}
    return converted([file, weights], dtype, preprocessing, **shape)


def agrees(section: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether a section of OpenCLIP's config has the given values or omits them."""
    return all(section.get(key, value) == value for key, value in values.items())


def converted(
    files: list[Path], dtype: torch.dtype, preprocessing: Mapping[str, Any] | None = None, **shape: Any
) -> Checkpoint:
    """Read a checkpoint whose last file contains weights under OpenAI's names.

    Parameters
    ----------
    files
        The files of the checkpoint.
    dtype
        Precision of the weights.
    preprocessing
        OpenCLIP's `preprocess_cfg`.
    shape
        Keyword arguments of `to_clip_model`.
    """
    model: Any = to_clip_model(read_weights(files[-1]), str(files[-1]), **shape)
    processor = OpenClipProcessor.of(preprocessing or {}, model.config.vision_config.image_size)
    return Checkpoint(model.to(dtype), processor, openai_tokenizer(), files)


def openai_tokenizer() -> Any:
    """Return OpenAI's tokenizer, which ships with the package, for checkpoints without a tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.verified(TOKENIZER), local_files_only=True, trust_remote_code=False)


def read_own_tokenizer(directory: Path, tokens: int) -> tuple[AnyTokenizer, list[Path]]:
    """Return the tokenizer of a CLIP-shaped text tower, as OpenCLIP reads it from a directory, and its files.

    Parameters
    ----------
    directory
        The directory of the checkpoint.
    tokens
        Size of the text tower's vocabulary.

    Raises
    ------
    CheckpointError
        If the tokenizer cannot be read or does not fit the text tower.
    """
    from transformers import AutoTokenizer

    try:
        with staged(directory, **model_type_of(directory)) as safe:
            given = AutoTokenizer.from_pretrained(safe, local_files_only=True, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # the loader raises many kinds of errors; the user needs one line
        raise CheckpointError(
            f"the tokenizer cannot be read ({first_line(error)})",
            where=f"checkpoint {directory}",
            remedy="Download the tokenizer's files again",
        ) from error
    tokenizer = AnyTokenizer.of(given, _one_space)
    ends = tokens - 1 == tokenizer.eos_token_id == largest_token(given)
    if len(tokenizer.start) != 1 or not ends or len(tokenizer) != tokens:
        raise CheckpointError(
            f"the tokenizer must have {tokens} tokens, and put one token before a text and token {tokens - 1}, at which"
            f" OpenCLIP reads the text, after it, but it has {len(tokenizer)} tokens, and puts {list(tokenizer.start)}"
            f" before and {tokenizer.eos_token_id} after a text",
            where=f"checkpoint {directory}",
            remedy="Download the tokenizer's files again",
        )
    return tokenizer, sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})


def _one_space(text: str) -> str:
    """Return a text with one space between words, as OpenCLIP prepares it for such a tokenizer."""
    return " ".join(text.split())
