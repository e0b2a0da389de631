"""Prompts as something to look at: the words next to them, and a map of what they make of class names.

Letters: P prompts, M context vectors, d token width, C classes, D feature width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone import Backbone

WORD_END = "</w>"  # of CLIP's tokens that end a word
WORD_STARTS = ("▁", "Ġ")  # of SentencePiece's and of byte-wise tokens that begin a word
WORD_PART = "##"  # of WordPiece's tokens inside of a word
SHORT = 0.05  # distances between prompts below which they count as one
SHORTEST = 3  # letters of a word that is shown: most of the shorter ones say nothing


def whole_words(tokens: Sequence[str | None]) -> dict[int, str]:
    """The words among a tokenizer's tokens, by their numbers: its marks say which tokens stand inside of a word."""
    present = {number: token for number, token in enumerate(tokens) if token}
    if any(token.endswith(WORD_END) for token in present.values()):
        return {number: token.removesuffix(WORD_END) for number, token in present.items() if token.endswith(WORD_END)}
    for mark in WORD_STARTS:
        if any(token.startswith(mark) for token in present.values()):
            return {number: token[len(mark) :] for number, token in present.items() if token.startswith(mark)}
    return {number: token for number, token in present.items() if not token.startswith(WORD_PART)}


class Words:
    """The whole words among a tokenizer's tokens."""

    def __init__(self, backbone: Backbone):
        tokenizer: Any = backbone.tokenizer
        tokens = tokenizer.convert_ids_to_tokens(range(len(backbone.text.tokens)))
        words = whole_words(tokens)
        kept = {number: word for number, word in words.items() if word.isalpha() and len(word) >= SHORTEST}
        self._words = list(kept.values())
        self._vectors = F.normalize(backbone.text.tokens[list(kept)], dim=-1)

    def nearest(self, context: Tensor) -> list[str]:
        """For each of a context's vectors [M, d] the word whose embedding has the largest cosine with it."""
        return [self._words[place] for place in (F.normalize(context, dim=-1) @ self._vectors.T).argmax(-1).tolist()]


@dataclass(frozen=True)
class Plane:
    """A plane through z_C in the space of all classes' text features, in which prompts are seen to go their ways.

    basis: [2, C·D] of orthonormal rows. shown: share of the squared distances from z_C that lies in the plane, 0 to 1.
    """

    basis: Tensor
    shown: float

    @classmethod
    def of(cls, offsets: Tensor, before: "Plane | None" = None) -> "Plane":
        """Of offsets [P, C·D] from z_C, the first of them p_G's: the principal components of the way from z_C to p_G
        and the ways from there to the others, turned to lie as nearly as possible as the plane before.

        All ways count about alike, however long: else nothing would be seen but whoever went farthest.
        """
        offsets = offsets.double()
        ways = torch.cat([offsets[:1], offsets[1:] - offsets[:1]])
        ways = ways / (ways.norm(dim=1, keepdim=True) + SHORT)
        basis = torch.linalg.svd(ways, full_matrices=False)[2][:2]
        if before is not None:
            left, _, right = torch.linalg.svd(before.basis @ basis.T)
            basis = left @ right @ basis
        total = float(offsets.square().sum())
        return cls(basis, float((offsets @ basis.T).square().sum()) / total if total else 1.0)

    def place(self, offsets: Tensor) -> list[tuple[float, float]]:
        """[P, C·D] -> where they lie in the plane."""
        return [(x, y) for x, y in (offsets.double() @ self.basis.T).tolist()]


def offsets(text: Tensor, guidance: Tensor) -> Tensor:
    """How far prompts' text features [P, C, D] are from z_C [C, D]: [P, C·D], scaled so that the squared length is the
    mean over classes."""
    return (text - guidance).flatten(1) / math.sqrt(len(guidance))


def cosines(text: Tensor, other: Tensor) -> list[float]:
    """The mean over classes of the cosine of each prompt's text features [P, C, D] and others' [C, D]."""
    return (text * other).sum(-1).mean(-1).tolist()
