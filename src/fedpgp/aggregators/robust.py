"""Rules that some wrong clients cannot move far. The number of examples, which a client may make up, is not used.

Krum's distances are those of the round's changes θ_i − θ, in float64: of prompts that have hardly moved, others would
compare rounding errors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators.base import Aggregator, Server, Tensors, Upload, mean
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Median(Aggregator):
    """The median of every coordinate, of an even number the mean of the middle two (Yin et al. 2018, definition 1)."""

    name = "median"
    source = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 1"

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        half = (len(uploads) - 1) // 2
        return _middle(server, uploads, half)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrimmedMean(Aggregator):
    """The mean of every coordinate without the largest and smallest β of the values (Yin et al. 2018, definition 2)."""

    name = "trimmed-mean"
    source = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 2"

    trim: float = Field(default=0.1, ge=0, lt=0.5, description="β, the share that is left out at each end (paper)")

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        return _middle(server, uploads, math.floor(self.trim * len(uploads) + 1e-9))  # 0.29 · 100 is 28.99…


def _middle(server: Server, uploads: Sequence[Upload], left_out: int) -> Server:
    """The mean of every coordinate without so many at each end."""
    kept = slice(left_out, len(uploads) - left_out)
    stacked = {name: torch.stack([upload.shared[name] for upload in uploads]) for name in server.shared}
    return Server({name: values.sort(dim=0).values[kept].mean(0) for name, values in stacked.items()})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Selecting(Aggregator, ABC):
    """Reckons with f hostile clients among n, and needs n ≥ `multiple` · f + 3."""

    multiple = 2

    malicious: int = Field(default=1, ge=0, description="f, how many hostile clients a round is reckoned to have")

    @abstractmethod
    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """The shared part after a round. uploads: enough of them, ascending by client."""

    def begin(self, shared: Tensors, clients: int) -> Server:
        """Raises ConfigError where not even all clients are enough."""
        if shared and clients < self._needed:
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

    name = "krum"
    source = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, section 4"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        best = _ranked(_changes(shared, uploads), self.malicious)[0]
        return {name: uploads[best].shared[name] for name in shared}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiKrum(_Selecting):
    """The mean of the n − f updates that Krum ranks first, all alike (Blanchard et al. 2017)."""

    name = "multi-krum"
    source = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, with m = n − f"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        count = len(uploads) - self.malicious
        chosen = _ranked(_changes(shared, uploads), self.malicious)[:count]
        return mean([uploads[place].shared for place in sorted(chosen)])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bulyan(_Selecting):
    """Of each coordinate the mean of the θ − 2f values nearest to the median, of the θ = n − 2f that Krum ranks first.

    The paper takes the θ one by one; here, as in Flower, they are ranked once: the last would be chosen by their f − 1
    nearest others, with f = 1 by rounding. That no more than f of the θ are hostile, on which the paper's bound rests,
    holds either way.
    """

    name = "bulyan"
    source = "El Mhamdi et al. 2018, ICML, arXiv 1802.07927, section 4"
    multiple = 4

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        changes, count = _changes(shared, uploads), len(uploads) - 2 * self.malicious
        chosen = changes[_ranked(changes, self.malicious)[:count]].sort(0).values
        median = (chosen[(count - 1) // 2] + chosen[count // 2]) / 2
        nearest = (chosen - median).abs().argsort(dim=0, stable=True)[: count - 2 * self.malicious]
        return _moved(shared, chosen.gather(0, nearest).mean(0))


def _changes(shared: Tensors, uploads: Sequence[Upload]) -> Tensor:
    """Every upload's change θ_i − θ as one vector [n, P], in float64, of all names in order."""

    def vector(tensors: Tensors) -> Tensor:
        return torch.cat([tensors[name].double().flatten() for name in sorted(shared)]).cpu()

    return torch.stack([vector(upload.shared) for upload in uploads]) - vector(shared)


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
