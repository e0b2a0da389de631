"""Views of prompts: the words nearest to their vectors, and a map of the text features that they give class names.

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

WORD_END = "</w>"  # suffix of CLIP's tokens that end a word
WORD_STARTS = ("▁", "Ġ")  # prefixes of SentencePiece's and of byte-wise tokens that begin a word
WORD_PART = "##"  # prefix of WordPiece's tokens inside a word
SHORT = 0.05  # prompts with a smaller distance count as equal
SHORTEST = 3  # letters of a word that is shown: most shorter words have no meaning


def whole_words(tokens: Sequence[str | None]) -> dict[int, str]:
    """Return the whole words among a tokenizer's tokens, by number. The tokenizer's marks show the parts of words."""
    present = {number: token for number, token in enumerate(tokens) if token}
    if any(token.endswith(WORD_END) for token in present.values()):
        return {number: token.removesuffix(WORD_END) for number, token in present.items() if token.endswith(WORD_END)}
    for mark in WORD_STARTS:
        if any(token.startswith(mark) for token in present.values()):
            return {number: token[len(mark) :] for number, token in present.items() if token.startswith(mark)}
    return {number: token for number, token in present.items() if not token.startswith(WORD_PART)}


class Words:
    """The whole words among a tokenizer's tokens, with their embeddings."""

    def __init__(self, backbone: Backbone):
        tokenizer: Any = backbone.tokenizer
        tokens = tokenizer.convert_ids_to_tokens(range(len(backbone.text.tokens)))
        words = whole_words(tokens)
        kept = {number: word for number, word in words.items() if word.isalpha() and len(word) >= SHORTEST}
        self._words = list(kept.values())
        self._vectors = F.normalize(backbone.text.tokens[list(kept)], dim=-1)

    def nearest(self, context: Tensor) -> list[str]:
        """Return, for each vector of a context [M, d], the word whose embedding has the largest cosine with it."""
        return [self._words[place] for place in (F.normalize(context, dim=-1) @ self._vectors.T).argmax(-1).tolist()]


@dataclass(frozen=True)
class Plane:
    """A plane through z_C in the space of all classes' text features, in which the page shows the prompts' paths.

    Attributes
    ----------
    basis
        Orthonormal rows, [2, C·D].
    shown
        Share of the squared distances from z_C that the plane shows, 0 to 1.
    """

    basis: Tensor
    shown: float

    @classmethod
    def of(cls, offsets: Tensor, before: "Plane | None" = None) -> "Plane":
        """Return the plane for prompts with these offsets from z_C.

        The basis is the principal components of the differences from z_C to p_G and from p_G to the other prompts. The
        differences have about the same weight whatever their lengths are; otherwise the plane would show only the
        longest one. The basis is rotated to be as close as possible to the plane before.

        Parameters
        ----------
        offsets
            Offsets from z_C, [P, C·D]; the first one is the offset of p_G.
        before
            The plane of the previous round.
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
        """Return the coordinates of offsets [P, C·D] in the plane."""
        return [(x, y) for x, y in (offsets.double() @ self.basis.T).tolist()]


def offsets(text: Tensor, guidance: Tensor) -> Tensor:
    """Return the offsets [P, C·D] of prompts' text features [P, C, D] from z_C [C, D].

    They are scaled so that the squared length of an offset is a mean over the classes.
    """
    return (text - guidance).flatten(1) / math.sqrt(len(guidance))


def cosines(text: Tensor, other: Tensor) -> list[float]:
    """Return each prompt's cosine of its text features [P, C, D] and `other` [C, D], as a mean over classes."""
    return (text * other).sum(-1).mean(-1).tolist()
