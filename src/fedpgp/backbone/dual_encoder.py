"""What a frozen dual encoder is, whatever it was read from."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedpgp.backbone.general_image import GeneralImageEncoder
from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.image import ImageEncoder, ImageTower
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, Tokenizer, class_tokens, split_template, text_ids
from fedpgp.errors import CheckpointError


class Towers(NamedTuple):
    """What a worker process needs of a dual encoder: what computes, without what loads and preprocesses.

    image: None where no method changes the image tower.
    """

    text: TextEncoder | GeneralTextEncoder
    image: ImageTower | None = None


@dataclass(frozen=True)
class Backbone:
    """A frozen dual encoder: image encoder, text encoder, tokenizer and logit scale.

    SigLIP's bias of logits is left out: it is the same for all classes, and a softmax over classes cancels it.
    """

    files: Sequence[Path]  # what decides what the encoders compute
    image: ImageEncoder | GeneralImageEncoder
    text: TextEncoder | GeneralTextEncoder
    tokenizer: Tokenizer
    logit_scale: Tensor  # [], its logarithm, as CLIP keeps it
    licence: str = "not stated"  # as the checkpoint's model card says

    @property
    def token_width(self) -> int:
        """d, the width of a context vector."""
        return self.text.token_width

    def towers(self, reads: Collection[str] = ()) -> Towers:
        """What computes for methods that read so much; the image tower's weights are copied where one changes it."""
        if "image tower" in reads and isinstance(self.image, ImageEncoder):
            return Towers(self.text, self.image.tower)
        return Towers(self.text)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files that decide what the encoders compute, and the precision."""
        digest = hashlib.sha256(f"{self.logit_scale.dtype} {self.text.products}".encode())
        for path in self.files:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_tokens(self, class_names: Sequence[str], tail: str = "{}.", first: bool = False) -> ClassTokens:
        """What the text encoder reads behind the context, for every class name; first: there is no context."""
        return class_tokens(self.tokenizer, class_names, tail, first)

    def phrase(self, text: str) -> Tensor:
        """The token embeddings [M, d] of a phrase such as "a photo of a"."""
        return self.text.embed(torch.tensor(text_ids(self.tokenizer, text.replace("_", " ")), dtype=torch.long))

    @torch.no_grad()
    def template_features(self, template: str, class_names: Sequence[str]) -> Tensor:
        """Text features [C, D] of a hand-written template such as "a photo of a {}." (z_C in the paper).

        Raises CheckpointError where one is not finite.
        """
        before, tail = split_template(template)
        features = self.text(self.phrase(before)[None], self.class_tokens(class_names, tail, not before))[0]
        if not features.isfinite().all():
            name = class_names[int((~features.isfinite()).any(1).nonzero()[0])]
            raise CheckpointError(
                f"the text feature of {template.format(name)!r} is not finite",
                where="backbone.checkpoint",
                remedy="Choose another checkpoint, or use --set backbone.precision=float32",
            )
        return features
