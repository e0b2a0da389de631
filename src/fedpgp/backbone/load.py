"""A name, a directory or a hub id -> a frozen CLIP."""

import hashlib
import json
import re
import timeit
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpgp import assets
from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.convert import HEAD, standard_processor, to_clip_model
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, Tokenizer, class_tokens, split_template, text_ids
from fedpgp.backbone.towers import Towers
from fedpgp.errors import CheckpointError

EMBEDDED = "pictoclip"
PATH = re.compile(r"[./~\\]|[A-Za-z]:[/\\]")  # begins what is no name on the hub
TOKENIZER = "clip-tokenizer"  # OpenAI's, for checkpoints that come without one
FILES = ["*.json", "*.safetensors", "*.txt"]
OLDER = "pytorch_model*.bin"  # transformers' weights where there are no others
OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
USUAL = {  # of OpenCLIP's config, where it is not that a key is missing or false
    ("text_cfg", "no_causal_mask"): False,
    ("text_cfg", "pool_type"): "argmax",
    ("text_cfg", "final_ln_after_pool"): False,
    ("vision_cfg", "pool_type"): "tok",
    ("vision_cfg", "final_ln_after_pool"): False,
}
PREPROCESSING = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
CARD = "README.md"


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP: image encoder, text encoder, tokenizer and logit scale."""

    files: Sequence[Path]  # what decides what the encoders compute
    image: ImageEncoder
    text: TextEncoder
    tokenizer: Tokenizer
    logit_scale: Tensor  # [], its logarithm, as CLIP keeps it
    licence: str = "not stated"  # as the checkpoint's model card says

    @property
    def token_width(self) -> int:
        """d, the width of a context vector."""
        return self.text.token_width

    def towers(self, reads: Collection[str] = ()) -> Towers:
        """What computes for methods that read so much; the image tower's weights are copied where one changes it."""
        return Towers(self.text, self.image.tower if "image tower" in reads else None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files that decide what the encoders compute, and the precision."""
        digest = hashlib.sha256(f"{self.logit_scale.dtype} {self.text.projection.dtype}".encode())
        for path in self.files:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_tokens(self, class_names: Sequence[str], tail: str = "{}.") -> ClassTokens:
        """What the text encoder reads behind the context, for every class name."""
        return class_tokens(self.tokenizer, class_names, tail)

    def phrase(self, text: str) -> Tensor:
        """The token embeddings [M, d] of a phrase such as "a photo of a"."""
        ids = torch.tensor(
            text_ids(self.tokenizer, text.replace("_", " ")), dtype=torch.long, device=self.logit_scale.device
        )
        return self.text.embed(ids)

    @torch.no_grad()
    def template_features(self, template: str, class_names: Sequence[str]) -> Tensor:
        """Text features [C, D] of a hand-written template such as "a photo of a {}." (z_C in the paper).

        Raises CheckpointError where one is not finite.
        """
        before, tail = split_template(template)
        features = self.text(self.phrase(before)[None], self.class_tokens(class_names, tail))[0]
        if not features.isfinite().all():
            name = class_names[int((~features.isfinite()).any(1).nonzero()[0])]
            raise CheckpointError(
                f"the checkpoint gives a text feature that is not finite for {template.format(name)!r}:"
                " choose another checkpoint, or precision float32"
            )
        return features


def load_backbone(name: str, precision: str = "float32", device: str = "cpu") -> Backbone:
    """Loads a CLIP from the package ("pictoclip"), a directory, a file, or a hub id.

    A directory or hub id has the files of transformers' CLIPModel, or of OpenCLIP; a file is one of OpenAI's `.pt`
    archives or a state dict under the same names. precision: "float32", "float64", or "bf16": the text tower multiplies
    matrices in bfloat16, all else is in float32. Raises CheckpointError, naming the file or setting and the remedy.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = _path(name)
    dtype = torch.float64 if precision == "float64" else torch.float32
    products = torch.bfloat16 if precision == "bf16" else dtype
    model, processor, tokenizer, files = _read(name, path, dtype)
    try:
        model = model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f"device must be one that PyTorch has here, got {device!r}: {_first_line(error)};"
            " --device cpu works everywhere"
        ) from error
    return Backbone(
        files=files,
        image=ImageEncoder(model, processor),
        text=TextEncoder.of(model, tokenizer.bos_token_id, products),
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach(),
        licence=licence_of(path if path.is_dir() else path.parent),
    )


def licence_of(directory: Path) -> str:
    """The licence that a model card's header states, or "not stated"."""
    try:
        text = (directory / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "not stated"
    header = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    match = re.search(r"^license:[ \t]*(\S.*)$", header, flags=re.MULTILINE)
    return match[1].strip().strip("\"'") if match else "not stated"


def _read(name: str, path: Path, dtype: torch.dtype) -> tuple[Any, Any, Any, list[Path]]:
    """The model, the preprocessing and the tokenizer of a checkpoint, and the files that they were read from."""
    if path.is_file():
        converted: Any = to_clip_model(read_weights(path), str(path))
        size = converted.config.vision_config.image_size
        return converted.to(dtype), standard_processor(size), _tokenizer(), [path]
    if (path / OPEN_CLIP).is_file() and not (path / "config.json").is_file():
        return _read_open_clip(path, dtype)
    patterns = FILES if any(path.glob("*.safetensors")) else [*FILES, OLDER]
    files = sorted({file for pattern in patterns for file in path.glob(pattern)})
    return (*_read_transformers(name, path, dtype), files)


def _read_transformers(name: str, directory: Path, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    _check_kind(name, directory)
    # Of the older files it reads tensors alone, too (weights_only).
    safe = any(directory.glob("*.safetensors")) or not any(directory.glob(OLDER))
    try:
        loaded: Any = CLIPModel.from_pretrained(
            directory, dtype=dtype, use_safetensors=safe, local_files_only=True, output_loading_info=True
        )
        model, report = loaded
        processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever the files make the loaders raise, the user needs one line
        raise CheckpointError(
            f"checkpoint {name!r} cannot be read from {directory}: {_first_line(error)};"
            " it must hold config.json, model.safetensors, tokenizer and preprocessor files of a transformers CLIPModel"
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"checkpoint {name!r} in {directory} lacks {len(report['missing_keys'])} weights of a CLIPModel,"
            f" the first is {min(report['missing_keys'])}: fetch it again, or name a complete one"
        )
    return model, processor, tokenizer


def _check_kind(name: str, directory: Path) -> None:
    """Raises CheckpointError for a model of transformers that is no CLIP; what is damaged is for the loader to say."""
    try:
        kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if kind in ("siglip", "siglip2"):
        raise CheckpointError(
            f"checkpoint {name!r} is a SigLIP, whose text tower is not causal: what fedpgp shares between classes is"
            " not the same there; choose a CLIP, such as openai/clip-vit-base-patch16"
        )
    if kind != "clip":
        raise CheckpointError(
            f"checkpoint {name!r} must be a CLIPModel of transformers, model_type 'clip': its config.json says {kind!r}"
        )


def _read_open_clip(directory: Path, dtype: torch.dtype) -> tuple[Any, Any, Any, list[Path]]:
    config = directory / OPEN_CLIP
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        model_cfg, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
        vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
        of_vision, of_text = int(vision.get("head_width", HEAD)), int(text["heads"])
        quick = bool(model_cfg.get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config} is not OpenCLIP's: {_first_line(error)}; fetch it again") from error
    if "hf_tokenizer_name" in text or "hf_model_name" in text:
        raise CheckpointError(f"{config}: text_cfg names a text tower or tokenizer of another kind than CLIP's own")
    others = [
        f"{place}.{key}"
        for place, section, keys in (
            ("text_cfg", text, ("no_causal_mask", "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs")),
            (
                "vision_cfg",
                vision,
                ("pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs", "timm_model_name"),
            ),
        )
        for key in keys
        if section.get(key, USUAL.get((place, key))) != USUAL.get((place, key))
    ]
    others += [f"preprocess_cfg.{key}" for key, usual in PREPROCESSING.items() if preprocess.get(key, usual) != usual]
    if others:
        raise CheckpointError(
            f"{config}: {others[0]} is not CLIP's own, and no other is read: convert the checkpoint to a CLIPModel of"
            " transformers, or choose another"
        )
    weights = next((directory / file for file in OPEN_CLIP_WEIGHTS if (directory / file).is_file()), None)
    if weights is None:
        raise CheckpointError(f"checkpoint {directory} lacks {' or '.join(OPEN_CLIP_WEIGHTS)}: fetch it again")
    model: Any = to_clip_model(
        read_weights(weights), str(weights), quick_gelu=quick, vision_head=of_vision, text_heads=of_text
    )
    processor = standard_processor(model.config.vision_config.image_size, preprocess)
    return model.to(dtype), processor, _tokenizer(), [config, weights]


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.verified(TOKENIZER), local_files_only=True)


def bfloat16_speed(device: str) -> float:
    """How many times faster than in float32 a device multiplies matrices in bfloat16, by a try of milliseconds."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(256, 256, dtype=dtype, device=device)
        return min(timeit.repeat(lambda: (x @ x)[0, 0].item(), number=2, repeat=4))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _path(name: str) -> Path:
    if name == EMBEDDED:
        return assets.verified(EMBEDDED)
    if Path(name).exists():
        return Path(name)
    if PATH.match(name):  # the hub's client would tell of the form of its names
        raise CheckpointError(
            f"checkpoint {name!r} does not exist: name a directory or file that does,"
            + (" with ~ written out," if name.startswith("~") else "")
            + f" a hub id like openai/clip-vit-base-patch16, or {EMBEDDED!r}"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"checkpoint must be {EMBEDDED!r}, an existing directory or a hub id like openai/clip-vit-base-patch16,"
            f" got {name!r}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*FILES, CARD]))
    except Exception as error:  # network, authorisation and name errors of several libraries
        raise CheckpointError(
            f"checkpoint {name!r} is neither a directory nor to be had from the hub: {_first_line(error)};"
            ' download it elsewhere and name its directory as backbone.checkpoint, or take the embedded "pictoclip"'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
