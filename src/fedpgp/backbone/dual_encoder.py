"""The frozen dual encoder, independent of the format from which it was read."""

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
    """Parts of a dual encoder that a worker process needs: the towers, without loading and preprocessing.

    Attributes
    ----------
    text
        The text encoder.
    image
        The image tower; None if no method changes it.
    """

    text: TextEncoder | GeneralTextEncoder
    image: ImageTower | None = None


@dataclass(frozen=True)
class Backbone:
    """Frozen dual encoder: image encoder, text encoder, tokenizer and logit scale.

    SigLIP's logit bias is omitted: it is the same for all classes, so a softmax over classes cancels it.

    Attributes
    ----------
    files
        The files that determine the features.
    image
        The image encoder.
    text
        The text encoder.
    tokenizer
        The tokenizer of the text encoder.
    logit_scale
        [], the logarithm of the scale, as CLIP stores it.
    licence
        The licence in the checkpoint's model card.
    """

    files: Sequence[Path]
    image: ImageEncoder | GeneralImageEncoder
    text: TextEncoder | GeneralTextEncoder
    tokenizer: Tokenizer
    logit_scale: Tensor
    licence: str = "not stated"

    @property
    def token_width(self) -> int:
        """Width d of a context vector."""
        return self.text.token_width

    def towers(self, reads: Collection[str] = ()) -> Towers:
        """Return the towers for methods that read the given inputs.

        The weights of the image tower are copied only if `reads` contains "image tower".

        Parameters
        ----------
        reads
            The `reads` of the methods.
        """
        if "image tower" in reads and isinstance(self.image, ImageEncoder):
            return Towers(self.text, self.image.tower)
        return Towers(self.text)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the precision and of the files that determine the features."""
        digest = hashlib.sha256(f"{self.logit_scale.dtype} {self.text.products}".encode())
        for path in self.files:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_tokens(self, class_names: Sequence[str], tail: str = "{}.", first: bool = False) -> ClassTokens:
        """Return the tokens that the text encoder reads after the context, for every class name.

        Parameters
        ----------
        class_names
            C class names.
        tail
            Text after the context, with {} for the class name.
        first
            Whether there is no context before the tokens.
        """
        return class_tokens(self.tokenizer, class_names, tail, first)

    def phrase(self, text: str) -> Tensor:
        """Return the token embeddings [M, d] of a phrase such as "a photo of a"."""
        return self.text.embed(torch.tensor(text_ids(self.tokenizer, text.replace("_", " ")), dtype=torch.long))

    @torch.no_grad()
    def template_features(self, template: str, class_names: Sequence[str]) -> Tensor:
        """Return the text features [C, D] of a hand-written template such as "a photo of a {}." (z_C in the paper).

        Raises
        ------
        CheckpointError
            If a feature is not finite.
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
