"""Krum and what is built on it: updates that lie near many others, as Flower's own functions find them.

Flower measures ‖x − y‖² as ‖x‖² + ‖y‖² − 2xy, in the precision and with the origin of what it is given: of prompts that
have hardly moved it would compare rounding errors. So it is given the round's changes θ_i − θ, in float64, and of every
client in one order of names. The number of examples, which a client may make up, is not used.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.aggregators.base import Aggregator, Server, Tensors, Upload, mean
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.runtime.validation import STRICT

if TYPE_CHECKING:
    from flwr.app import RecordDict


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Selecting(Aggregator, ABC):
    """Reckons with f hostile clients among n, and needs n ≥ `multiple` · f + 3."""

    multiple: ClassVar[int] = 2

    malicious: int = Field(default=1, ge=0, description="f, how many hostile clients a round is reckoned to have")

    @abstractmethod
    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        """The shared part after a round. uploads: enough of them, ascending by client."""

    def begin(self, shared: Tensors, clients: int) -> Server:
        """Raises ConfigError where Flower is missing, or where not even all clients are enough."""
        if not shared:
            return Server(shared)
        if clients < self._needed:
            remedy = f"at most {(clients - 3) // self.multiple}" if clients >= 3 else "given at least 3 clients"
            raise ConfigError(
                f"{self.name}.malicious must be {remedy} with task.clients = {clients}, got {self.malicious}:"
                f" {self._rule}"
            )
        try:
            import flwr.serverapp.strategy  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f'federation.aggregator={self.name} calls Flower, which is missing: pip install "fedpgp[flower]"'
            ) from error
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
    source: ClassVar[str] = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, section 4; through Flower"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        from flwr.serverapp.strategy.multikrum import select_multikrum

        contents = _contents(shared, uploads)
        (best,) = _places(contents, select_multikrum(contents, self.malicious, 1))
        return {name: uploads[best].shared[name] for name in shared}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultiKrum(_Selecting):
    """The mean of the n − f updates that Krum ranks first, all alike (Blanchard et al. 2017)."""

    name: ClassVar[str] = "multi-krum"
    source: ClassVar[str] = "Blanchard et al. 2017, NeurIPS, arXiv 1703.02757, with m = n − f; through Flower"

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        from flwr.serverapp.strategy.multikrum import select_multikrum

        contents, count = _contents(shared, uploads), len(uploads) - self.malicious
        chosen = _places(contents, select_multikrum(contents, self.malicious, count))
        return mean([uploads[place] for place in chosen], [1] * count)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bulyan(_Selecting):
    """Of each coordinate the mean of the θ − 2f values nearest to the median, of the θ = n − 2f that Krum ranks first.

    The paper takes the θ one by one, as Flower does not: the last would be chosen by their f − 1 nearest others, with
    f = 1 by rounding. That no more than f of the θ are hostile, on which the paper's bound rests, holds either way.
    """

    name: ClassVar[str] = "bulyan"
    source: ClassVar[str] = "El Mhamdi et al. 2018, ICML, arXiv 1802.07927, section 4; through Flower"
    multiple: ClassVar[int] = 4

    def combine(self, shared: Tensors, uploads: Sequence[Upload]) -> Tensors:
        from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
        from flwr.serverapp.strategy.multikrum import select_multikrum

        count = len(uploads) - 2 * self.malicious
        chosen = select_multikrum(_contents(shared, uploads), self.malicious, count)
        changes = [content.array_records["change"].to_numpy_ndarrays() for content in chosen]
        medians = [np.median([change for (change,) in changes], axis=0)]
        (found,) = aggregate_n_closest_weights(medians, changes, count - 2 * self.malicious)
        return _moved(shared, found)


def _contents(shared: Tensors, uploads: Sequence[Upload]) -> list["RecordDict"]:
    """Every upload's change θ_i − θ as one vector, in the form that Flower's rules choose from."""
    from flwr.app import ArrayRecord, RecordDict

    names = sorted(shared)
    vectors = [
        torch.cat([(upload.shared[name].double() - shared[name].double()).flatten() for name in names]).cpu().numpy()
        for upload in uploads
    ]
    return [RecordDict({"change": ArrayRecord([vector])}) for vector in vectors]


def _places(contents: Sequence["RecordDict"], chosen: Sequence["RecordDict"]) -> list[int]:
    """Where the chosen are, ascending."""
    wanted = {id(one) for one in chosen}
    return [place for place, content in enumerate(contents) if id(content) in wanted]


def _moved(shared: Tensors, change: NDArray[np.float64]) -> Tensors:
    """The shared part after a change, the reverse of `_contents`."""
    names = sorted(shared)
    parts = torch.from_numpy(change).split([shared[name].numel() for name in names])
    return {
        name: (shared[name].cpu().double() + part.view_as(shared[name])).to(shared[name])
        for name, part in zip(names, parts, strict=True)
    }
