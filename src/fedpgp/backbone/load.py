"""A name, a directory or a hub id -> a frozen CLIP."""

import hashlib
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
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, Tokenizer, class_tokens, split_template, text_ids
from fedpgp.backbone.towers import Towers
from fedpgp.errors import CheckpointError

EMBEDDED = "pictoclip"
FILES = ["*.json", "*.safetensors", "*.txt"]


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP: image encoder, text encoder, tokenizer and logit scale."""

    directory: Path
    image: ImageEncoder
    text: TextEncoder
    tokenizer: Tokenizer
    logit_scale: Tensor  # [], its logarithm, as CLIP keeps it

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
        for path in sorted({path for pattern in FILES for path in self.directory.glob(pattern)}):
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
    """Loads a CLIP from the package ("pictoclip"), a directory of transformers files, or a hub id.

    precision: "float32", "float64", or "bf16": the text tower multiplies matrices in bfloat16, all else is in float32.
    Raises CheckpointError, naming the file or setting and the remedy.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = _directory(name)
    dtype = torch.float64 if precision == "float64" else torch.float32
    products = torch.bfloat16 if precision == "bf16" else dtype
    try:
        loaded: Any = CLIPModel.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
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
    try:
        model = model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f"device must be one that PyTorch has here, got {device!r}: {_first_line(error)};"
            " --device cpu works everywhere"
        ) from error
    return Backbone(
        directory=directory,
        image=ImageEncoder(model, processor),
        text=TextEncoder.of(model, tokenizer.bos_token_id, products),
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach(),
    )


def bfloat16_speed(device: str) -> float:
    """How many times faster than in float32 a device multiplies matrices in bfloat16, by a try of milliseconds."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(256, 256, dtype=dtype, device=device)
        return min(timeit.repeat(lambda: (x @ x)[0, 0].item(), number=2, repeat=4))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _directory(name: str) -> Path:
    if name == EMBEDDED:
        return assets.verified(EMBEDDED)
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"checkpoint must be {EMBEDDED!r}, an existing directory or a hub id like openai/clip-vit-base-patch16,"
            f" got {name!r}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # network, authorisation and name errors of several libraries
        raise CheckpointError(
            f"checkpoint {name!r} is neither a directory nor to be had from the hub: {_first_line(error)};"
            ' download it elsewhere and name its directory as backbone.checkpoint, or take the embedded "pictoclip"'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
