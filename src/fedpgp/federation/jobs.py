"""What every client of a run is given to do in a round, and what its model is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors
from fedpgp.backbone import Backbone
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.config import FederationConfig
from fedpgp.data.images import Images
from fedpgp.data.tasks import Client, Task
from fedpgp.evaluate import Evaluation, Evaluator
from fedpgp.federation.client import ClientJob, LocalTraining, remembered
from fedpgp.federation.participation import participants
from fedpgp.federation.state import Clients, ClientState, State
from fedpgp.methods import Frozen, Method, Params
from fedpgp.randomness import generator
from fedpgp.workers import Workers


@dataclass(frozen=True)
class Data:
    """A task with what is kept of its images: `train` of the whole training split, `tests` of each test set."""

    task: Task
    train: Images
    tests: Mapping[str, Images]


@dataclass(frozen=True)
class _Softmax:
    """Classes of a softmax in training; tokens: theirs, and those of the method's extra names.

    columns: by label, the place among the classes or −1.
    """

    tokens: ClassTokens
    frozen: Frozen
    columns: Tensor


class Federation:
    """What does not change from round to round. trains: whether there is anything to train."""

    def __init__(
        self,
        method: Method,
        data: Data,
        backbone: Backbone,
        settings: FederationConfig,
        seed: int,
        aggregator: Aggregator,
    ):
        task = data.task
        self.aggregator = aggregator
        self.method, self.settings, self._data, self._task, self._seed = method, settings, data, task, seed
        self._frozen = frozen_of(method, task, backbone)
        self._names = backbone.class_tokens([*task.class_names, *method.extra_names], method.tail)
        self._base = self._softmax(task.base)
        tokens = backbone.class_tokens(task.class_names, method.tail)
        self._evaluator = Evaluator(method, task, data.tests, tokens, self._frozen)
        self._first = method.init_shared(task, backbone, generator(seed, "shared"))
        self.trains = bool(self._first or method.init_private(task, backbone, generator(seed, "private"), 0))

    @property
    def device(self) -> torch.device:
        return self._frozen.guidance.device

    def begin(self) -> Server:
        """The server before the first round."""
        return self.aggregator.begin(self._first, len(self._task.clients))

    def downloads(self, number: int, server: Server) -> dict[int, Download]:
        """What those are sent who take part in a round, by client, ascending; where images are pooled, client 0."""
        settings, count = self.settings, len(self._task.clients)
        if number > settings.rounds:
            taking_part: Sequence[int] = range(count)
        elif self.method.pooled:
            taking_part = [0]
        else:
            share = 1.0 if number == 1 and settings.everyone_first else settings.participation
            taking_part = participants(count, share, self._seed, number)
        controls = self._aggregator_of(number).controls
        found = {client: self.aggregator.download(server, client) for client in taking_part}
        return {client: one if controls else replace(one, control={}) for client, one in found.items()}

    def job(self, number: int, client: int, download: Download, own: ClientState) -> ClientJob:
        """A client's work in a round."""
        method, settings, task = self.method, self.settings, self._task
        finetunes = number > settings.rounds
        holder = task.clients[client]
        if method.pooled and not finetunes:
            holder = Client(0, task.base, np.concatenate([one.train for one in task.clients]))
        training = LocalTraining(
            method.finetune_epochs if finetunes else settings.local_epochs,
            settings.batch_size,
            settings.momentum,
            settings.weight_decay,
        )
        return self._job(holder, number, download, own, training, self._aggregator_of(number))

    def fitting(self, number: int, server: Server, clients: Clients, training: LocalTraining) -> list[ClientJob]:
        """The work of everybody at once, in training of another kind than that of the rounds."""
        return [
            self._job(
                client,
                number,
                replace(self.aggregator.download(server, client.id), control={}),
                clients[client.id],
                training,
                FedAvg(),
            )
            for client in self._task.clients
        ]

    def _aggregator_of(self, number: int) -> Aggregator:
        return FedAvg() if number > self.settings.rounds else self.aggregator

    def _job(
        self,
        client: Client,
        number: int,
        download: Download,
        own: ClientState,
        training: LocalTraining,
        aggregator: Aggregator,
    ) -> ClientJob:
        images, labels, softmax = self._holding(client)
        return ClientJob(
            method=self.method,
            aggregator=aggregator,
            start=(own.kept if self.method.resumes_shared else {}) or self._received(download),
            download=download,
            own=own,
            images=images,
            labels=labels,
            classes=softmax.tokens,
            frozen=softmax.frozen,
            training=training,
            seed=self._seed,
            round=number,
            client=client.id,
        )

    def evaluate(
        self, number: int, server: Server, clients: Clients, workers: Workers, alphas: Sequence[float]
    ) -> Evaluation:
        """All clients' models, the shared part alone, and at each α < 1 what lies between the two."""

        def model(client: int) -> Params:
            own, download = clients[client], self.aggregator.download(server, client)
            images, labels, softmax = self._holding(self._task.clients[client])
            memory = remembered(self.method, images, labels, softmax.frozen)
            params = Params(own.kept or self._received(download), own.private, download.shared, memory)
            return self.method.for_prediction(params)

        received = self.aggregator.download(server, 0).shared
        alone = self.method.without_private(
            self.method.for_prediction(Params(server.shared, clients[0].private, received))
        )
        return self._evaluator(number, alone, model, workers, alphas)

    def _received(self, download: Download) -> Tensors:
        """The shared part as a client is sent it, perhaps beside other things."""
        return {name: download.shared[name] for name in self._first}

    def _holding(self, client: Client) -> tuple[Images, Tensor, _Softmax]:
        """A client's training images, their columns [n], and the softmax that these are of."""
        softmax = self._softmax(client.classes) if self.method.own_classes else self._base
        labels = torch.from_numpy(self._task.train.labels[client.train])
        return self._data.train[torch.from_numpy(client.train)], softmax.columns[labels], softmax

    def _softmax(self, classes: Sequence[int]) -> _Softmax:
        count = len(self._task.class_names)
        tokens = self._names.select([*classes, *range(count, len(self._names))])
        return _Softmax(tokens, self._frozen.select(classes), _places(classes, count).to(self._frozen.base.device))


def frozen_of(method: Method, task: Task, backbone: Backbone) -> Frozen:
    """What never changes during a task, for all of its classes."""
    templates = [backbone.template_features(template, task.class_names) for template in method.templates(task)]
    guidance = templates[0] if len(templates) == 1 else F.normalize(torch.stack(templates).mean(0), dim=-1)
    base = _places(task.base, len(task.class_names)).to(guidance.device)
    return Frozen(guidance, backbone.logit_scale, base)


def _places(classes: Sequence[int], count: int) -> Tensor:
    """By label, of so many, the place among some classes or −1."""
    places = torch.full((count,), -1)
    places[list(classes)] = torch.arange(len(classes))
    return places


def client_states(
    method: Method,
    task: Task,
    backbone: Backbone,
    settings: FederationConfig,
    seed: int,
    state: State,
    aggregator: Aggregator | None = None,
) -> Clients:
    """What every client of a run keeps: as it was left or, before its first round, as it starts.

    All start from the same draw, or with `settings.independent_private` each from one of its own.
    """
    shared = method.init_shared(task, backbone, generator(seed, "shared"))
    control = (method.aggregator or aggregator or FedAvg()).begin_client(shared)

    def first(client: int) -> ClientState:
        own = (client,) if settings.independent_private else ()
        return ClientState(method.init_private(task, backbone, generator(seed, "private", *own), client), {}, control)

    return Clients(state, len(task.clients), first, backbone.logit_scale.device)
