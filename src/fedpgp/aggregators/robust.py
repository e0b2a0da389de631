"""Means that some wrong clients cannot move far; the number of examples, which a client may make up, is not used."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.aggregators.base import Aggregator, Server, Upload
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Median(Aggregator):
    """The median of every coordinate, of an even number the mean of the middle two (Yin et al. 2018, definition 1)."""

    name: ClassVar[str] = "median"
    source: ClassVar[str] = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 1"

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        half = (len(uploads) - 1) // 2
        return _middle(server, uploads, half)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrimmedMean(Aggregator):
    """The mean of every coordinate without the largest and smallest β of the values (Yin et al. 2018, definition 2)."""

    name: ClassVar[str] = "trimmed-mean"
    source: ClassVar[str] = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 2"

    trim: float = Field(default=0.1, ge=0, lt=0.5, description="β, the share that is left out at each end (paper)")

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        return _middle(server, uploads, math.floor(self.trim * len(uploads) + 1e-9))  # 0.29 · 100 is 28.99…


def _middle(server: Server, uploads: Sequence[Upload], left_out: int) -> Server:
    """The mean of every coordinate without so many at each end."""
    return Server(
        {
            name: torch.stack([upload.shared[name] for upload in uploads])
            .sort(dim=0)
            .values[left_out : len(uploads) - left_out]
            .mean(0)
            for name in server.shared
        }
    )
