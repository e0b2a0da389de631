"""Robust rules, which a few hostile clients cannot change much.

They do not use the number of examples, because a client may report a wrong number. The distances of Krum, Bulyan and
the geometric median are computed from the changes θ_i − θ of the round in float64. Distances between prompts that have
hardly changed would otherwise consist of rounding errors.
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
class _Robust(Aggregator, ABC):
    """Base class of rules that survive a minority of hostile clients."""

    robust = True

    def survives(self, clients: int) -> int:
        return (clients - 1) // 2

    def remedy(self, clients: int) -> str:
        return f"Use at least {self.fewest} clients in a round: raise task.clients or federation.participation"

    @property
    def fewest(self) -> int:
        """The smallest number of clients in a round among which the rule survives a hostile one."""
        return 3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Median(_Robust):
    """The median of every coordinate (Yin et al. 2018, definition 1).

    For an even number of clients, it is the mean of the two middle values.
    """

    name = "median"
    source = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 1"

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        half = (len(uploads) - 1) // 2
        return _middle(server, uploads, half)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrimmedMean(_Robust):
    """The mean of every coordinate without the largest and smallest share β of the values (Yin et al. 2018)."""

    name = "trimmed-mean"
    source = "Yin et al. 2018, ICML, arXiv 1803.01498, definition 2"

    trim: float = Field(default=0.1, ge=0, lt=0.5, description="β, share of the values removed at each end (paper)")

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        return _middle(server, uploads, self.survives(len(uploads)))

    def survives(self, clients: int) -> int:
        """Return the number of values that are removed at each end, ⌊β n⌋."""
        return math.floor(self.trim * clients + 1e-9)  # 0.29 · 100 is 28.99…

    def remedy(self, clients: int) -> str:
        if clients < self.fewest:
            return super().remedy(clients)
        return f"Use --set {self.name}.trim={math.ceil(100 / clients) / 100} or more"


def _middle(server: Server, uploads: Sequence[Upload], left_out: int) -> Server:
    """Return the mean of every coordinate without the `left_out` smallest and largest values."""
    kept = slice(left_out, len(uploads) - left_out)
    stacked = {name: torch.stack([upload.shared[name] for upload in uploads]) for name in server.shared}
    return Server({name: values.sort(dim=0).values[kept].mean(0) for name, values in stacked.items()})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GeometricMedian(_Robust):
    """The point with the smallest sum of distances to the updates, by Weiszfeld's iterations (Pillutla et al. 2022).

    An iteration is v ← Σ w_i θ_i / Σ w_i with w_i = 1 / max(ν, ‖v − θ_i‖). It starts from the median of every
    coordinate instead of the paper's mean. Both lead to the same point. From a mean that hostile updates have moved far
    away, it takes many iterations.
    """

    name = "geometric-median"
    source = "Pillutla et al. 2022, IEEE Transactions on Signal Processing, arXiv 1912.13445, algorithm 2"

    smoothing: float = Field(default=1e-6, gt=0, le=1e3, description="ν, smallest distance in a weight (paper)")
    iterations: int = Field(default=100, ge=1, le=100_000, description="Number of Weiszfeld's iterations (ours)")

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        if not server.shared:
            return server
        changes = _changes(server.shared, uploads)
        point = changes.median(0).values
        for _ in range(self.iterations):
            weights = 1 / torch.linalg.vector_norm(changes - point, dim=1).clamp(min=self.smoothing)
            point = weights @ changes / weights.sum()
        return Server(_moved(server.shared, point))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Selecting(_Robust, ABC):
    """Base class of rules that tolerate f hostile clients among n ≥ `multiple` · f + 3 clients."""

    multiple = 2

    malicious: int = Field(
        default=1, ge=0, description="f, number of hostile clients in a round that the aggregator must tolerate"
    )

    @abstractmethod
    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """Return the shared part after a round.

        Parameters
        ----------
        shared
            The shared part before the round.
        uploads
            The uploads, ascending by client. There are enough of them.
        """

    def begin(self, shared: Tensors, clients: int) -> Server:
        """Return the initial server. Raise ConfigError if the run has too few clients for any round."""
        if shared and clients < self._needed:
            most = (clients - 3) // self.multiple
            fewer = f"--set {self.name}.malicious={most}" if most >= 0 else "another aggregator"
            raise ConfigError(
                where="task.clients",
                allowed=f"at least {self._rule}",
                got=clients,
                remedy=f"Use --set task.clients={self._needed} or more, or {fewer}",
            )
        return Server(shared)

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        """Return the server after a round. Raise TooFewError if there are too few uploads."""
        if not server.shared:
            return server
        if len(uploads) < self._needed:
            raise TooFewError(
                where="the number of updates in a round",
                allowed=f"at least {self._rule}",
                got=len(uploads),
                remedy=f"Lower {self.name}.malicious, or raise federation.participation",
            )
        return Server(self.combine(server.shared, sorted(uploads, key=lambda upload: upload.client)))

    def without(self, refused: int) -> "_Selecting":
        """Return the rule for the remaining updates. If r faulty updates were rejected, at most f − r are left."""
        return replace(self, malicious=max(0, self.malicious - refused))

    def survives(self, clients: int) -> int:
        return self.malicious if clients >= self._needed else 0

    def remedy(self, clients: int) -> str:
        most = (clients - 3) // self.multiple
        return (
            f"Use --set {self.name}.malicious={1 if self.malicious < 1 else most}"
            if most > 0
            else super().remedy(clients)
        )

    @property
    def fewest(self) -> int:
        return self.multiple + 3

    @property
    def _needed(self) -> int:
        return self.multiple * self.malicious + 3

    @property
    def _rule(self) -> str:
        return f"{self._needed}, because {self.name} needs {self.multiple} · malicious + 3 clients"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Krum(_Selecting):
    """The update with the smallest sum of squared distances to its n − f − 2 nearest others (Blanchard et al. 2017)."""

    name = "krum"
    source = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, section 4"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        best = _ranked(_changes(shared, uploads), self.malicious)[0]
        return {name: uploads[best].shared[name] for name in shared}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiKrum(_Selecting):
    """The unweighted mean of the n − f updates that Krum ranks first (Blanchard et al. 2017)."""

    name = "multi-krum"
    source = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, with m = n − f"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        count = len(uploads) - self.malicious
        chosen = _ranked(_changes(shared, uploads), self.malicious)[:count]
        return mean([uploads[place].shared for place in sorted(chosen)])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bulyan(_Selecting):
    """A trimmed mean of the updates that Krum ranks first (El Mhamdi et al. 2018, section 4).

    Krum selects θ = n − 2f updates. The result is, for each coordinate, the mean of the θ − 2f values that are nearest
    to the median. The paper selects the θ updates one by one. Here, as in Flower, they are ranked once. With selection
    one by one, the last updates would be chosen by their distances to f − 1 others, and by rounding errors if f = 1.
    The paper's bound requires that at most f of the θ updates are hostile, which holds in both cases.
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
    """Return the change θ_i − θ of each upload as one vector in float64, [n, P], with all names in order."""

    def vector(tensors: Tensors) -> Tensor:
        return torch.cat([tensors[name].double().flatten() for name in sorted(shared)]).cpu()

    return torch.stack([vector(upload.shared) for upload in uploads]) - vector(shared)


def _ranked(changes: Tensor, malicious: int) -> list[int]:
    """Sort changes [n, P] by Krum's score, the sum of squared distances to the n − f − 2 nearest others.

    Return their indices.
    """
    squares = torch.cdist(changes, changes, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squares.fill_diagonal_(torch.inf).sort(1).values[:, : len(changes) - malicious - 2]
    return nearest.sum(1).argsort(stable=True).tolist()


def _moved(shared: Tensors, change: Tensor) -> Tensors:
    """Return the shared part after a change [P], the inverse of `_changes`."""
    names = sorted(shared)
    parts = change.split([shared[name].numel() for name in names])
    return {
        name: (shared[name].cpu().double() + part.view_as(shared[name])).to(shared[name])
        for name, part in zip(names, parts, strict=True)
    }
