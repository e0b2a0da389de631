"""A name, a directory or a hub id -> a frozen CLIP."""

import hashlib
import json
import re
import timeit
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedpgp import assets
from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.convert import HEAD, standard_processor, to_clip_model
from fedpgp.backbone.image import ImageEncoder, ImageTower
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, Tokenizer, class_tokens, split_template, text_ids
from fedpgp.errors import CheckpointError, first_line

EMBEDDED = "pictoclip"
TOKENIZER = "clip-tokenizer"  # OpenAI's, for checkpoints that come without one
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
CARD = "README.md"
FILES = ["*.json", "*.safetensors", "*.txt"]
OLDER = "pytorch_model*.bin"  # transformers' weights where there are no others
FAMILIES = {"clip": "CLIPModel"}  # model_type in transformers' config.json -> the class there
OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OF_TOWER = {"final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None}
OPEN_CLIP_VALUES: Mapping[str, Mapping[str, Any]] = {  # that can be read, and what a key has that is missing
    "text_cfg": OF_TOWER
    | {"no_causal_mask": False, "pool_type": "argmax", "hf_model_name": None, "hf_tokenizer_name": None},
    "vision_cfg": OF_TOWER | {"pool_type": "tok", "timm_model_name": None},
    "preprocess_cfg": {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"},
}


class Towers(NamedTuple):
    """What a worker process needs of a CLIP: what computes, without what loads and preprocesses.

    image: None where no method changes the image tower.
    """

    text: TextEncoder
    image: ImageTower | None = None


class Checkpoint(NamedTuple):
    """What a checkpoint consists of, in the types of transformers. files: what it was read from."""

    model: Any
    processor: Any
    tokenizer: Any
    files: list[Path]


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
        return self.text.embed(torch.tensor(text_ids(self.tokenizer, text.replace("_", " ")), dtype=torch.long))

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
    checkpoint = _read(name, path, dtype)
    try:
        model = checkpoint.model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f"device must be one that PyTorch has here, got {device!r}: {first_line(error)};"
            " --device cpu works everywhere"
        ) from error
    return Backbone(
        files=checkpoint.files,
        image=ImageEncoder(model, checkpoint.processor),
        text=TextEncoder.of(model, checkpoint.tokenizer.bos_token_id, products),
        tokenizer=checkpoint.tokenizer,
        logit_scale=model.logit_scale.detach(),
        licence=licence_of(path if path.is_dir() else path.parent),
    )


def licence_of(directory: Path) -> str:
    """The licence that a model card's header states, or "not stated"."""
    from huggingface_hub import metadata_load

    try:
        header = metadata_load(directory / CARD) or {}
    except Exception:  # it may be any text: nothing is read from it but this
        header = {}
    return str(header.get("license", "not stated"))


def _read(name: str, path: Path, dtype: torch.dtype) -> Checkpoint:
    """The checkpoint in a file or directory, in the format that its files show."""
    if path.is_file():
        return _converted([path], dtype)
    if (path / OPEN_CLIP).is_file() and not (path / "config.json").is_file():
        return _read_open_clip(path, dtype)
    return _read_transformers(name, path, dtype)


def _read_transformers(name: str, directory: Path, dtype: torch.dtype) -> Checkpoint:
    import transformers

    older = any(directory.glob(OLDER)) and not any(directory.glob("*.safetensors"))
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = transformers.AutoConfig.from_pretrained(directory, **local).model_type
        if kind not in FAMILIES:
            raise CheckpointError(
                f"checkpoint {name!r} must be of a model_type {' or '.join(map(repr, FAMILIES))}, its config.json has"
                f" {kind!r}: choose a CLIP, such as openai/clip-vit-base-patch16"
            )
        # Of the older files it reads tensors alone, too (weights_only).
        model, report = getattr(transformers, FAMILIES[kind]).from_pretrained(
            directory, dtype=dtype, use_safetensors=not older, output_loading_info=True, **local
        )
        processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil", **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **local)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the files make the loaders raise, the user needs one line
        raise CheckpointError(
            f"checkpoint {name!r} cannot be read from {directory}: {first_line(error)};"
            " it must hold config.json, model.safetensors, tokenizer and preprocessor files of a transformers CLIPModel"
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"checkpoint {name!r} in {directory} lacks {len(report['missing_keys'])} weights of a CLIPModel,"
            f" the first is {min(report['missing_keys'])}: fetch it again, or name a complete one"
        )
    files = {file for pattern in [*FILES, *([OLDER] if older else [])] for file in directory.glob(pattern)}
    return Checkpoint(model, processor, tokenizer, sorted(files))


def _read_open_clip(directory: Path, dtype: torch.dtype) -> Checkpoint:
    file = directory / OPEN_CLIP
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        sections = {**config, "preprocess_cfg": preprocessing}
        others = [
            f"{section}.{key}"
            for section, values in OPEN_CLIP_VALUES.items()
            for key, value in values.items()
            if sections[section].get(key, value) != value
        ]
        shape = {
            "quick_gelu": bool(config.get("quick_gelu", False)),
            "vision_head": int(config["vision_cfg"].get("head_width", HEAD)),
            "text_heads": int(config["text_cfg"]["heads"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not OpenCLIP's: {first_line(error)}; fetch it again") from error
    if others:
        raise CheckpointError(
            f"{file}: {others[0]} is not CLIP's own, and no other is read: convert the checkpoint to a CLIPModel of"
            " transformers, or choose another"
        )
    weights = next((directory / name for name in OPEN_CLIP_WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"checkpoint {directory} lacks {' or '.join(OPEN_CLIP_WEIGHTS)}: fetch it again")
    return _converted([file, weights], dtype, preprocessing, **shape)


def _converted(
    files: list[Path], dtype: torch.dtype, preprocessing: Mapping[str, Any] | None = None, **shape: Any
) -> Checkpoint:
    """A checkpoint with OpenAI's names of weights, in the last of its files; shape: as `to_clip_model` takes it."""
    model: Any = to_clip_model(read_weights(files[-1]), str(files[-1]), **shape)
    processor = standard_processor(model.config.vision_config.image_size, preprocessing)
    return Checkpoint(model.to(dtype), processor, _tokenizer(), files)


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
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"checkpoint {name!r} does not exist: name a directory or file that does, a hub id like"
            f" openai/clip-vit-base-patch16, or {EMBEDDED!r}; write ~ out"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*FILES, CARD]))
    except Exception as error:  # network, authorisation and name errors of several libraries
        raise CheckpointError(
            f"checkpoint {name!r} is neither a directory nor to be had from the hub: {first_line(error)};"
            ' download it elsewhere and name its directory as backbone.checkpoint, or take the embedded "pictoclip"'
        ) from error
