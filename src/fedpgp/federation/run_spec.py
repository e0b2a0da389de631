"""What the server and the clients of a run agree on; nothing here knows an image."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors
from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.federation.optimization import LocalTraining
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import ClientState, on_device
from fedpgp.methods import Method
from fedpgp.runtime.randomness import generator


class RunSpec:
    """How a run goes, whoever trains.

    clients: how many there are, numbered from 0; tests: the names of the test sets; trains: whether there is anything
    to train. Of the task these, class names and templates are read, and no more. aggregator: where the method has none
    of its own; None takes FedAvg.
    """

    def __init__(
        self,
        method: Method,
        task: Task,
        backbone: Backbone,
        settings: FederationConfig,
        seed: int,
        aggregator: Aggregator | None = None,
    ):
        self.method, self.settings, self.seed = method, settings, seed
        self.aggregator = method.own_aggregator(settings.rounds) or aggregator or FedAvg()
        self.clients, self.tests = len(task.clients), tuple(task.tests)
        self.device: torch.device = backbone.logit_scale.device
        self._task, self.backbone = task, backbone
        self._join_epochs: int | None = None
        self.shared = method.init_shared(task, backbone, generator(seed, "shared"))
        self.trains = bool(self.shared or self.first(0).private)

    def for_newcomers(self, task: Task, epochs: int) -> "RunSpec":
        """Return the specification for clients that join after the last round and fit their private part alone.

        A newcomer is sent what all clients share, also where the server has a shared part for every client it knows.
        """
        spec = RunSpec(self.method, task, self.backbone, self.settings, self.seed)
        spec.aggregator, spec._join_epochs = FedAvg(), epochs
        return spec

    @property
    def rounds(self) -> range:
        """The numbers of its rounds; one more where the method fine-tunes after them, 0 alone where nothing trains."""
        return range(1, rounds_of(self.method, self.settings) + 1) if self.trains else range(1)

    @property
    def sent_control(self) -> Tensors:
        """What a client sends beside its shared part in a round, before the first."""
        if not self.aggregator.controls:
            return {}
        zeros = {name: torch.zeros_like(value) for name, value in self.shared.items()}
        download = self.aggregator.download(self.begin(), 0)
        return self.aggregator.finish(download, self.shared, zeros, self.aggregator.begin_client(self.shared))[1]

    def finetunes(self, number: int) -> bool:
        """Whether clients train for themselves in this round, and send nothing."""
        return number > self.settings.rounds

    def begin(self) -> Server:
        """The server before the first round."""
        return self.aggregator.begin(self.shared, self.clients)

    def first(self, client: int) -> ClientState:
        """What a client keeps before its first round.

        All start from the same draw, or with `settings.independent_private` each from one of its own.
        """
        own = (client,) if self.settings.independent_private else ()
        private = self.method.init_private(self._task, self.backbone, generator(self.seed, "private", *own), client)
        return ClientState(private, {}, self.aggregator.begin_client(self.shared))

    def states(self, kept: Callable[[int], ClientState | None]) -> "Clients":
        """What every client keeps, as it was left or as it starts. kept: None of a client that never took part."""
        return Clients(self, kept)

    def downloads(self, number: int, server: Server) -> dict[int, Download]:
        """What those are sent who take part in a round, by client, ascending."""
        controls = self.aggregator_of(number).controls
        downloads = {client: self.aggregator.download(server, client) for client in self.taking_part(number)}
        return downloads if controls else {i: replace(download, control={}) for i, download in downloads.items()}

    @property
    def most_rounds(self) -> int:
        """In how many rounds before fine-tuning the client takes part that is drawn most often."""
        federated = [number for number in self.rounds if number and not self.finetunes(number)]
        counts = Counter(client for number in federated for client in self.taking_part(number))
        return max(counts.values(), default=0)

    def taking_part(self, number: int) -> Sequence[int]:
        """Who takes part in a round, ascending; where images are pooled, client 0."""
        settings = self.settings
        if self.finetunes(number):
            return range(self.clients)
        if self.method.pooled:
            return [0]
        share = 1.0 if number == 1 and settings.everyone_first else settings.participation
        return participants(self.clients, share, settings.participation_rounding, self.seed, number)

    def aggregator_of(self, number: int) -> Aggregator:
        """The one that local training must know of in a round."""
        return FedAvg() if self.finetunes(number) else self.aggregator

    def training(self, number: int) -> LocalTraining:
        """How every client trains in a round."""
        joins = self._join_epochs is not None
        epochs = self._join_epochs if joins else self.method.finetune_epochs if self.finetunes(number) else None
        return LocalTraining.of(self.method, self.settings, epochs, private_alone=joins)


@dataclass(frozen=True)
class Clients:
    """What every client keeps, read when it is asked for; of one that has not taken part yet, what it starts with.

    kept: such as `State.client`. What a client starts with is drawn again rather than kept.
    """

    spec: RunSpec
    kept: Callable[[int], ClientState | None]

    def __iter__(self) -> Iterator[ClientState]:
        return map(self.__getitem__, range(self.spec.clients))

    def __getitem__(self, client: int) -> ClientState:
        kept = self.kept(client)
        return self.spec.first(client) if kept is None else on_device(kept, self.spec.device)


def participants(clients: int, participation: float, rounding: str, seed: int, round_number: int) -> list[int]:
    """The clients that take part in a round, ascending: a fraction of all, at least one, drawn per round.

    rounding: of participation * clients to a whole number: "nearest", where a half goes to the even number, or "down".
    "down" is what the authors' code does, floating point included: int(0.29 * 100) is 28.
    """
    count = max(1, int(participation * clients) if rounding == "down" else round(participation * clients))
    order = torch.randperm(clients, generator=generator(seed, "participation", round_number))
    return sorted(order[:count].tolist())


def rounds_of(method: Method, settings: FederationConfig) -> int:
    """How many records a run has: its rounds, and one more where the method fine-tunes after them."""
    return settings.rounds + bool(method.finetune_epochs)
