"""The specification of a run, which the server and the clients share. This module does not use any images."""

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
    """The specification of a run. It does not depend on which process trains the clients.

    Of the task, only the number of clients, the names of the test sets, the class names and the templates are read.

    Parameters
    ----------
    method
        The method.
    task
        The task.
    backbone
        The frozen dual encoder.
    settings
        The section [federation].
    seed
        Seed of all random numbers of the run.
    aggregator
        The aggregator, if the method does not have its own. None means FedAvg.

    Attributes
    ----------
    clients
        Number of clients. They are numbered from 0.
    tests
        Names of the test sets.
    shared
        The shared parameters before the first round.
    trains
        Whether the method has any parameters to train.
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

    @property
    def images(self) -> dict[str, int]:
        """Number of images of each test set."""
        return {name: len(test.images) for name, test in self._task.tests.items()}

    def for_newcomers(self, task: Task, epochs: int) -> "RunSpec":
        """Return the specification for clients that join after the last round and fit only their private part.

        All new clients receive the same shared part, even if the server keeps one for each client that it knows.

        Parameters
        ----------
        task
            A task whose clients are the new clients.
        epochs
            Number of epochs in which they train.
        """
        spec = RunSpec(self.method, task, self.backbone, self.settings, self.seed)
        spec.aggregator, spec._join_epochs = FedAvg(), epochs
        return spec

    @property
    def rounds(self) -> range:
        """Numbers of the rounds, from 1, including one for fine-tuning. Without training, the only number is 0."""
        return range(1, rounds_of(self.method, self.settings) + 1) if self.trains else range(1)

    @property
    def sent_control(self) -> Tensors:
        """Tensors that the aggregator adds to a client's upload, as they are before the first round."""
        if not self.aggregator.controls:
            return {}
        zeros = {name: torch.zeros_like(value) for name, value in self.shared.items()}
        download = self.aggregator.download(self.begin(), 0)
        return self.aggregator.finish(download, self.shared, zeros, self.aggregator.begin_client(self.shared))[1]

    def finetunes(self, number: int) -> bool:
        """Whether round `number` is for fine-tuning, in which clients train separately and send nothing."""
        return number > self.settings.rounds

    def begin(self) -> Server:
        """Return the state of the server before the first round."""
        return self.aggregator.begin(self.shared, self.clients)

    def first(self, client: int) -> ClientState:
        """Return the state of a client before its first round.

        All clients start from the same random draw, or each from its own with `settings.independent_private`.
        """
        own = (client,) if self.settings.independent_private else ()
        private = self.method.init_private(self._task, self.backbone, generator(self.seed, "private", *own), client)
        return ClientState(private, {}, self.aggregator.begin_client(self.shared))

    def states(self, kept: Callable[[int], ClientState | None]) -> "Clients":
        """Return the states of all clients. `kept` returns None for a client that never took part."""
        return Clients(self, kept)

    def downloads(self, number: int, server: Server) -> dict[int, Download]:
        """Return the downloads of the clients that take part in a round, by client number, ascending."""
        controls = self.aggregator_of(number).controls
        downloads = {client: self.aggregator.download(server, client) for client in self.taking_part(number)}
        return downloads if controls else {i: replace(download, control={}) for i, download in downloads.items()}

    @property
    def most_rounds(self) -> int:
        """Number of rounds before fine-tuning of the client that takes part most often."""
        federated = [number for number in self.rounds if number and not self.finetunes(number)]
        counts = Counter(client for number in federated for client in self.taking_part(number))
        return max(counts.values(), default=0)

    def taking_part(self, number: int) -> Sequence[int]:
        """Return the numbers of the clients that take part in a round, ascending. With pooled images: client 0."""
        settings = self.settings
        if self.finetunes(number):
            return range(self.clients)
        if self.method.pooled:
            return [0]
        share = 1.0 if number == 1 and settings.everyone_first else settings.participation
        return participants(self.clients, share, settings.participation_rounding, self.seed, number)

    def aggregator_of(self, number: int) -> Aggregator:
        """Return the aggregator that local training uses in a round."""
        return FedAvg() if self.finetunes(number) else self.aggregator

    def training(self, number: int) -> LocalTraining:
        """Return the settings of local training in a round."""
        joins = self._join_epochs is not None
        epochs = self._join_epochs if joins else self.method.finetune_epochs if self.finetunes(number) else None
        return LocalTraining.of(self.method, self.settings, epochs, private_alone=joins)


@dataclass(frozen=True)
class Clients:
    """The states of all clients, read when they are used.

    The initial state of a client that has not taken part yet is drawn again each time and not stored.

    Attributes
    ----------
    spec
        The specification of the run.
    kept
        Returns the stored state of a client, or None; for example `State.client`.
    """

    spec: RunSpec
    kept: Callable[[int], ClientState | None]

    def __iter__(self) -> Iterator[ClientState]:
        return map(self.__getitem__, range(self.spec.clients))

    def __getitem__(self, client: int) -> ClientState:
        kept = self.kept(client)
        return self.spec.first(client) if kept is None else on_device(kept, self.spec.device)


def participants(clients: int, participation: float, rounding: str, seed: int, round_number: int) -> list[int]:
    """Draw the clients that take part in a round, at least one, and return their numbers, ascending.

    Parameters
    ----------
    clients
        Number of clients.
    participation
        Share of the clients that take part.
    rounding
        Rounding of participation * clients to an integer: "nearest", with halves to the even number, or "down" as in
        the authors' code, including its floating-point arithmetic: int(0.29 * 100) is 28.
    seed
        Seed of the run.
    round_number
        Number of the round.
    """
    count = participant_count(clients, participation, rounding)
    order = torch.randperm(clients, generator=generator(seed, "participation", round_number))
    return sorted(order[:count].tolist())


def participant_count(clients: int, participation: float, rounding: str) -> int:
    """Return the number of clients that take part in a round; see `participants`."""
    return max(1, int(participation * clients) if rounding == "down" else round(participation * clients))


def rounds_of(method: Method, settings: FederationConfig) -> int:
    """Return the number of records of a run: one for each round, and one for fine-tuning if the method has it."""
    return settings.rounds + bool(method.finetune_epochs)
