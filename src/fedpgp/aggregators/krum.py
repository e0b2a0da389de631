"""Krum and what is built on it: updates that lie near many others.

Distances are those of the round's changes θ_i − θ, in float64: of prompts that have hardly moved, others would compare
rounding errors. The number of examples, which a client may make up, is not used.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators.base import Aggregator, Server, Tensors, Upload, mean
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Selecting(Aggregator, ABC):
    """Reckons with f hostile clients among n, and needs n ≥ `multiple` · f + 3."""

    multiple: ClassVar[int] = 2

    malicious: int = Field(default=1, ge=0, description="f, how many hostile clients a round is reckoned to have")

    @abstractmethod
    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """The shared part after a round. uploads: enough of them, ascending by client."""

    def begin(self, shared: Tensors, clients: int) -> Server:
        """Raises ConfigError where not even all clients are enough."""
        if not shared:
            return Server(shared)
        if clients < self._needed:
            remedy = f"at most {(clients - 3) // self.multiple}" if clients >= 3 else "given at least 3 clients"
            raise ConfigError(
                f"{self.name}.malicious must be {remedy} with task.clients = {clients}, got {self.malicious}:"
                f" {self._rule}"
            )
        return Server(shared)

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        """Raises TooFewError where too few uploads came."""
        if not server.shared:
            return server
        if len(uploads) < self._needed:
            raise TooFewError(
                f"{len(uploads)} updates came in a round where {self._rule}:"
                f" lower {self.name}.malicious, or raise federation.participation"
            )
        return Server(self.combine(server.shared, sorted(uploads, key=lambda upload: upload.client)))

    def without(self, refused: int) -> "_Selecting":
        """Of n clients f at most are faulty: of the n − r whose updates are left, f − r."""
        return replace(self, malicious=max(0, self.malicious - refused))

    @property
    def _needed(self) -> int:
        return self.multiple * self.malicious + 3

    @property
    def _rule(self) -> str:
        return f"{self.name} needs {self.multiple} · malicious + 3 = {self._needed}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Krum(_Selecting):
    """The one update whose n − f − 2 nearest others are nearest, by the sum of squares (Blanchard et al. 2017)."""

    name: ClassVar[str] = "krum"
    source: ClassVar[str] = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, section 4"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        best = _ranked(_changes(shared, uploads), self.malicious)[0]
        return {name: uploads[best].shared[name] for name in shared}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiKrum(_Selecting):
    """The mean of the n − f updates that Krum ranks first, all alike (Blanchard et al. 2017)."""

    name: ClassVar[str] = "multi-krum"
    source: ClassVar[str] = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, with m = n − f"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        count = len(uploads) - self.malicious
        chosen = _ranked(_changes(shared, uploads), self.malicious)[:count]
        return mean([uploads[place] for place in sorted(chosen)], [1] * count)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bulyan(_Selecting):
    """Of each coordinate the mean of the θ − 2f values nearest to the median, of the θ = n − 2f that Krum ranks first.

    The paper takes the θ one by one; here, as in Flower, they are ranked once: the last would be chosen by their f − 1
    nearest others, with f = 1 by rounding. That no more than f of the θ are hostile, on which the paper's bound rests,
    holds either way.
    """

    name: ClassVar[str] = "bulyan"
    source: ClassVar[str] = "El Mhamdi et al. 2018, ICML, arXiv 1802.07927, section 4"
    multiple: ClassVar[int] = 4

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        changes, count = _changes(shared, uploads), len(uploads) - 2 * self.malicious
        chosen = changes[_ranked(changes, self.malicious)[:count]].sort(0).values
        median = (chosen[(count - 1) // 2] + chosen[count // 2]) / 2
        nearest = (chosen - median).abs().argsort(dim=0, stable=True)[: count - 2 * self.malicious]
        return _moved(shared, chosen.gather(0, nearest).mean(0))


def _changes(shared: Tensors, uploads: Sequence[Upload]) -> Tensor:
    """Every upload's change θ_i − θ as one vector [n, P], in float64, of all names in order."""
    names = sorted(shared)
    vectors = [
        torch.cat([(upload.shared[name].double() - shared[name].double()).flatten() for name in names]).cpu()
        for upload in uploads
    ]
    return torch.stack(vectors)


def _ranked(changes: Tensor, malicious: int) -> list[int]:
    """Places of changes [n, P] by Krum's score, the sum of squared distances to the n − f − 2 nearest others."""
    squares = torch.cdist(changes, changes, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squares.fill_diagonal_(torch.inf).sort(1).values[:, : len(changes) - malicious - 2]
    return nearest.sum(1).argsort(stable=True).tolist()


def _moved(shared: Tensors, change: Tensor) -> Tensors:
    """The shared part after a change [P], the reverse of `_changes`."""
    names = sorted(shared)
    parts = change.split([shared[name].numel() for name in names])
    return {
        name: (shared[name].cpu().double() + part.view_as(shared[name])).to(shared[name])
        for name, part in zip(names, parts, strict=True)
    }
