"""Read models with the OpenCLIP library, with towers of timm and of transformers.

CLIP's own shape (convert.py), and EfficientNet-Lite0 with CLIP's text tower (efficientnet.py), are read without the
library if OpenCLIP's config declares them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.foreign_configs import check_room, model_type_of, text_model_config
from fedpgp.backbone.foreign_files import inside, read_json
from fedpgp.backbone.foreign_tokenizers import staged
from fedpgp.backbone.open_clip_processor import OpenClipProcessor
from fedpgp.errors import CheckpointError, first_line

PREFIX = "open_clip:"
CONFIG = "open_clip_config.json"
TIMM_NAME = re.compile(r"\w[\w.]*")  # excludes paths and addresses from which timm would load
TEXT_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a hub id, or a directory inside the checkpoint's directory
TOKENIZER_OPTIONS = {"clean", "strip_sep_token"}
EXTRA = 'pip install "fedpgp[open-clip]"'


class OpenClipText(nn.Module):
    """Text tower of an OpenCLIP model, from ids [S, L] to features [S, D]; the tower makes its own mask."""

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return _first(self.text(ids))


@dataclass(frozen=True)
class OpenClip:
    """Model of the OpenCLIP library, with its preprocessing and its tokenizer.

    Attributes
    ----------
    model
        The model.
    processor
        The preprocessing.
    tokenizer
        The tokenizer.
    config
        `model_cfg` of its configuration.
    files
        The files from which it was read.
    """

    model: Any
    processor: OpenClipProcessor
    tokenizer: Any
    config: Mapping[str, Any]
    files: list[Path]


def library(what: str) -> Any:
    """Import the OpenCLIP library.

    Parameters
    ----------
    what
        Name of the checkpoint in messages.

    Raises
    ------
    CheckpointError
        If the library is not installed or cannot be imported.
    """
    try:
        import open_clip
    except Exception as error:  # it imports torchvision, which raises RuntimeError with another build of PyTorch
        raise CheckpointError(
            f"it needs open_clip_torch and timm, which cannot be imported ({first_line(error)})",
            where=f"checkpoint {what}",
            remedy=f"Install them with `{EXTRA}`",
        ) from error
    return open_clip


def read_directory(directory: Path, content: dict[str, Any], weights: Path, dtype: torch.dtype) -> OpenClip:
    """Read the model of a directory with open_clip_config.json; only tensors are read from its weights.

    Parameters
    ----------
    directory
        The directory.
    content
        The checked content of open_clip_config.json, which is changed.
    weights
        The file of weights.
    dtype
        Precision of the weights.

    Raises
    ------
    CheckpointError
        If OpenCLIP cannot read the model.
    """
    open_clip = library(str(directory))
    config = content["model_cfg"]
    _check_names(directory, config)
    own = _text_config(directory, config)
    with staged(directory, **model_type_of(directory), open_clip_config=content) as safe:
        tokenizer = _guarded(str(directory), lambda: open_clip.get_tokenizer(f"local-dir:{safe}"))
    with TemporaryDirectory(prefix="fedpgp-") as made:
        if own is not None:  # OpenCLIP reads the config of a text tower of transformers from a directory
            config["text_cfg"]["hf_model_name"] = made
            (Path(made) / "config.json").write_text(json.dumps(text_model_config(read_json(own), own)))
        model = _guarded(str(directory), lambda: _build(open_clip, config, weights, dtype))
    names = {file for pattern in ("*.json", "*.txt", "*.model") for file in directory.glob(pattern)}
    processor = OpenClipProcessor.of(content.get("preprocess_cfg", {}), model.visual.image_size)
    files = [*sorted(map(inside, names)), *([] if own is None else [own]), weights]
    return OpenClip(model, processor, tokenizer, config, files)


def _text_config(directory: Path, config: Mapping[str, Any]) -> Path | None:
    """Return the config of a text tower of transformers, in the checkpoint or from the hub; None for another tower."""
    name = config.get("text_cfg", {}).get("hf_model_name")
    if not name:
        return None
    file = directory / name / "config.json"
    if file.is_file() and directory.resolve() in file.parent.resolve().parents:
        return inside(file)
    from huggingface_hub import hf_hub_download

    return Path(_guarded(str(directory), lambda: hf_hub_download(name, "config.json")))


def _check_names(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a config that could make a library run code or read files elsewhere."""
    text = config.get("text_cfg", {})
    for key, value, allowed in (
        ("vision_cfg.timm_model_name", config.get("vision_cfg", {}).get("timm_model_name"), TIMM_NAME),
        ("text_cfg.hf_model_name", text.get("hf_model_name"), TEXT_NAME),
    ):
        if value is not None and not (isinstance(value, str) and allowed.fullmatch(value)):
            raise CheckpointError(
                where=f"{key} in {directory / CONFIG}",
                allowed="the name of a model",
                got=value,
                remedy="Download the checkpoint again",
            )
    if others := sorted({*text.get("tokenizer_kwargs", {})} - TOKENIZER_OPTIONS):
        raise CheckpointError(
            where=f"every key of text_cfg.tokenizer_kwargs in {directory / CONFIG}",
            allowed=" or ".join(sorted(TOKENIZER_OPTIONS)),
            got=others[0],
            remedy="Download the checkpoint again",
        )


def read_named(name: str, dtype: torch.dtype) -> OpenClip:
    """Read the model open_clip:ARCHITECTURE/TAG, whose weights OpenCLIP downloads or finds in its cache.

    Parameters
    ----------
    name
        The name with its prefix.
    dtype
        Precision of the weights.

    Raises
    ------
    CheckpointError
        If the name is unknown or OpenCLIP cannot read the model.
    """
    open_clip = library(name)
    architecture, _, tag = name.removeprefix(PREFIX).partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise CheckpointError(
            f"OpenCLIP has no architecture {architecture!r}",
            where=f"checkpoint {name!r}",
            remedy='List the architectures with `python -c "import open_clip; print(open_clip.list_models())"`',
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise CheckpointError(
            f"{architecture} has no weights {tag!r}, only {', '.join(tags) or 'none at all'}",
            where=f"checkpoint {name!r}",
            remedy=f"Use, for example, {PREFIX}{architecture}/{tags[0]}" if tags else "Choose another architecture",
        )
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    weights = Path(_guarded(name, lambda: open_clip.download_pretrained(pretrained)))
    tokenizer = _guarded(name, lambda: open_clip.get_tokenizer(architecture))
    model = _guarded(name, lambda: _build(open_clip, config, weights, dtype))
    processor = OpenClipProcessor.of(pretrained, model.visual.image_size)
    return OpenClip(model, processor, tokenizer, config, [weights])


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    """Call `read` and convert all its errors to CheckpointError."""
    from transformers import dynamic_module_utils as custom_code

    waits = custom_code.TIME_OUT_REMOTE_CODE
    custom_code.TIME_OUT_REMOTE_CODE = 0  # otherwise it asks whether to run code from the checkpoint
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:  # several libraries raise many kinds of errors here; the user needs one line
        raise CheckpointError(
            f"OpenCLIP cannot read it ({first_line(error)}); its weights, config and tokenizer must be from the same"
            " model",
            where=f"checkpoint {name}",
            remedy="Download it again, or choose another checkpoint",
        ) from error
    finally:
        custom_code.TIME_OUT_REMOTE_CODE = waits


def _build(open_clip: Any, config: Mapping[str, Any], weights: Path, dtype: torch.dtype) -> Any:
    from open_clip import factory

    if "multimodal_cfg" in config:
        raise CheckpointError(
            "it is not a dual encoder but a captioning model, whose text tower also reads the image",
            where=f"checkpoint {weights}",
            remedy="Choose a dual encoder",
        )
    shape = {name: value for name, value in config.items() if name != "custom_text"}
    shape["vision_cfg"] = {**shape["vision_cfg"], "timm_model_pretrained": False}
    shape["text_cfg"] = dict(shape["text_cfg"])
    if "hf_model_name" in shape["text_cfg"]:
        shape["text_cfg"]["hf_model_pretrained"] = False

    def build() -> Any:
        return open_clip.CustomTextCLIP(**shape)  # the classical model with the text tower in a separate module

    read = factory.load_state_dict
    if weights.suffix not in (".npz", ".npy"):  # these are only in OpenCLIP's own list of weights
        tensors = read_weights(weights)
        check_room(build, tensors, weights)
        factory.load_state_dict = lambda *_, **__: tensors
    model = build()
    try:
        factory.load_checkpoint(model, str(weights), strict=True)
    finally:
        factory.load_state_dict = read
    return model.to(dtype)


def pool_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from pixels to pooled features [B, D]."""
    return lambda pixels: _first(model.visual(pixels))


def positions_of(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function from pixels to separately pooled and projected positions [B, P, D], or None if undefined."""
    visual = model.visual
    trunk = getattr(visual, "trunk", None)
    if trunk is None or not hasattr(trunk, "forward_head") or hasattr(visual.head, "pool"):
        return None
    if getattr(getattr(trunk, "attn_pool", None), "pos_embed", None) is not None:
        return None

    def positions(pixels: Tensor) -> Tensor:
        features = trunk.forward_features(pixels)
        if features.dim() == 4:
            alone = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        else:
            alone = features[:, trunk.num_prefix_tokens :].flatten(0, 1)[:, None]
        return visual.head(trunk.forward_head(alone)).unflatten(0, (len(pixels), -1))

    return positions


def _first(features: Any) -> Tensor:
    """Return the pooled features of a tower, which may also return its tokens."""
    value = features[0] if isinstance(features, tuple) else features
    assert isinstance(value, Tensor)
    return value
