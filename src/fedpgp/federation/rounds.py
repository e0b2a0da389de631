"""The loop: broadcast, local training, aggregation, evaluation."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any

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
from fedpgp.evaluate import Evaluation, Evaluator, path_alphas
from fedpgp.federation.client import (
    ClientJob,
    ClientUpdate,
    LocalTraining,
    in_groups,
    remembered,
    train_clients,
)
from fedpgp.federation.participation import participants
from fedpgp.federation.state import Clients, ClientState, State, on_device
from fedpgp.methods import Frozen, Method, Params
from fedpgp.metrics import summary
from fedpgp.randomness import generator
from fedpgp.workers import Workers


@dataclass(frozen=True)
class Data:
    """A task with what is kept of its images: `train` of the whole training split, `tests` of each test set."""

    task: Task
    train: Images
    tests: Mapping[str, Images]


def rounds_of(method: Method, settings: FederationConfig) -> int:
    """How many records a run has: its rounds, and one more where the method fine-tunes after them."""
    return settings.rounds + bool(method.finetune_epochs)


def federate(
    method: Method,
    data: Data,
    backbone: Backbone,
    settings: FederationConfig,
    seed: int,
    workers: Workers,
    state: State,
    aggregator: Aggregator | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs the rounds that `state` has not finished yet and yields the record of each when it is safe in the state.

    What server and clients keep, and the last evaluation, are in the state, and only there: memory and the time of a
    round depend on those who take part, but for rounds that are evaluated. A method that trains nothing has one
    round, with number 0. aggregator: None takes FedAvg; a method's own goes before.
    """
    federation = _Federation(method, data, backbone, settings, seed, method.aggregator or aggregator or FedAvg())
    clients = client_states(method, data.task, backbone, settings, seed, state, aggregator)
    kept = state.server()
    server = federation.begin() if kept is None else on_device(kept, backbone.logit_scale.device)
    trains = bool(server.shared or clients[0].private)
    numbers = range(1, rounds_of(method, settings) + 1) if trains else range(1)
    taken_part = Counter(client for record in state.records() for client in record["participants"])
    for number in numbers[state.rounds() :]:
        started = time.perf_counter()
        updates: list[ClientUpdate] = []
        finetunes = number > settings.rounds
        if trains:
            jobs = federation.jobs(number, server, clients)
            updates = list(chain.from_iterable(workers.map(train_clients, in_groups(workers.towers, jobs))))
            if finetunes:
                updates = [replace(u, own=replace(u.own, kept=u.upload.shared)) for u in updates]
            else:
                server = federation.aggregator.aggregate(server, [update.upload for update in updates])
        trained = time.perf_counter()
        with state.round():
            pools = method.pooled and not finetunes
            state.keep(server, {} if pools else {update.upload.client: update.own for update in updates})
            record: dict[str, Any] = {"round": number, "participants": [u.upload.client for u in updates]}
            if number % settings.eval_every == 0 or number == numbers[-1]:
                alphas = path_alphas(settings.path_points if number == numbers[-1] else 1)
                evaluation = federation.evaluate(number, server, clients, workers, alphas)
                state.keep_evaluation(evaluation)
                record |= {**summary(evaluation.clients), "shared": evaluation.shared, **evaluation.diagnostics}
            if number == numbers[-1] and data.task.new_clients:
                record |= _join(method, data, backbone, settings, seed, workers, server, number)
            record |= {"bytes_down": 0, "bytes_up": 0}
            if updates:
                taken_part.update(record["participants"])
                epochs = settings.local_epochs * (max(taken_part.values()) - finetunes)
                record |= _mean_losses(updates) | method.spent(epochs + method.finetune_epochs * finetunes)
            if updates and not pools:
                record["bytes_down"] = round(fmean(size(job.download.shared, job.download.control) for job in jobs))
            if updates and not pools and not finetunes:
                record["bytes_up"] = round(fmean(size(u.upload.shared, u.upload.control) for u in updates))
            record |= {"seconds_training": trained - started, "seconds_evaluation": time.perf_counter() - trained}
            state.keep_record(number, record)
        yield record


def _join(
    method: Method,
    data: Data,
    backbone: Backbone,
    settings: FederationConfig,
    seed: int,
    workers: Workers,
    server: Server,
    number: int,
) -> dict[str, Any]:
    """New clients fit their private part to their images, the shared part stays; how they do, each and on the mean.

    A newcomer is sent what all clients share, also where the server has a shared part for every client that it knows.
    """
    newcomers = replace(data, task=replace(data.task, clients=data.task.new_clients, new_clients=()))
    federation = _Federation(method, newcomers, backbone, settings, seed, FedAvg())
    with State.create() as state:
        clients = client_states(method, newcomers.task, backbone, settings, seed, state)
        training = LocalTraining(
            settings.join_epochs, settings.batch_size, settings.momentum, settings.weight_decay, private_alone=True
        )
        jobs = federation.fitting(number + 1, server, clients, training)
        if clients[0].private:
            updates = chain.from_iterable(workers.map(train_clients, in_groups(workers.towers, jobs)))
            state.keep(server, {update.upload.client: replace(update.own, kept={}) for update in updates})
        found = federation.evaluate(number, server, clients, workers, path_alphas(1)).clients
    names = ("local", *data.task.tests)
    return {
        "new": fmean(found["local"]),
        "new_clients": [{name: float(found[name][client.id]) for name in names} for client in newcomers.task.clients],
    }


@dataclass(frozen=True)
class _Softmax:
    """Classes of a softmax in training; tokens: theirs, and those of the method's extra names.

    columns: by label, the place among the classes or −1.
    """

    tokens: ClassTokens
    frozen: Frozen
    columns: Tensor


class _Federation:
    """What does not change from round to round."""

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
        self._method, self._data, self._task, self._settings, self._seed = method, data, task, settings, seed
        self._frozen = frozen_of(method, task, backbone)
        self._names = backbone.class_tokens([*task.class_names, *method.extra_names], method.tail)
        self._base = self._softmax(task.base)
        tokens = backbone.class_tokens(task.class_names, method.tail)
        self._evaluator = Evaluator(method, task, data.tests, tokens, self._frozen)
        self._first = method.init_shared(task, backbone, generator(seed, "shared"))

    def begin(self) -> Server:
        return self.aggregator.begin(self._first, len(self._task.clients))

    def jobs(self, number: int, server: Server, clients: Clients) -> list[ClientJob]:
        """The work of all who take part in a round; of everybody's images at once for a method that pools them."""
        method, settings, task = self._method, self._settings, self._task
        finetunes = number > settings.rounds
        if finetunes:
            holders: Sequence[Client] = task.clients
        elif method.pooled:
            holders = [Client(0, task.base, np.concatenate([client.train for client in task.clients]))]
        else:
            share = 1.0 if number == 1 and settings.everyone_first else settings.participation
            holders = [task.clients[i] for i in participants(len(task.clients), share, self._seed, number)]
        training = LocalTraining(
            method.finetune_epochs if finetunes else settings.local_epochs,
            settings.batch_size,
            settings.momentum,
            settings.weight_decay,
        )
        return [
            self._job(client, number, server, clients[client.id], training, FedAvg() if finetunes else self.aggregator)
            for client in holders
        ]

    def fitting(self, number: int, server: Server, clients: Clients, training: LocalTraining) -> list[ClientJob]:
        """The work of everybody at once, in training of another kind than that of the rounds."""
        return [
            self._job(client, number, server, clients[client.id], training, FedAvg()) for client in self._task.clients
        ]

    def _job(
        self,
        client: Client,
        number: int,
        server: Server,
        own: ClientState,
        training: LocalTraining,
        aggregator: Aggregator,
    ) -> ClientJob:
        download = self.aggregator.download(server, client.id)
        images, labels, softmax = self._holding(client)
        if not aggregator.controls:
            download = replace(download, control={})
        return ClientJob(
            method=self._method,
            aggregator=aggregator,
            start=(own.kept if self._method.resumes_shared else {}) or self._received(download),
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
            memory = remembered(self._method, images, labels, softmax.frozen)
            params = Params(own.kept or self._received(download), own.private, download.shared, memory)
            return self._method.for_prediction(params)

        received = self.aggregator.download(server, 0).shared
        alone = self._method.without_private(
            self._method.for_prediction(Params(server.shared, clients[0].private, received))
        )
        return self._evaluator(number, alone, model, workers, alphas)

    def _received(self, download: Download) -> Tensors:
        """The shared part as a client is sent it, perhaps beside other things."""
        return {name: download.shared[name] for name in self._first}

    def _holding(self, client: Client) -> tuple[Images, Tensor, _Softmax]:
        """A client's training images, their columns [n], and the softmax that these are of."""
        softmax = self._softmax(client.classes) if self._method.own_classes else self._base
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
    control = (method.aggregator or aggregator or FedAvg()).begin_client(
        method.init_shared(task, backbone, generator(seed, "shared"))
    )

    def first(client: int) -> ClientState:
        own = (client,) if settings.independent_private else ()
        return ClientState(method.init_private(task, backbone, generator(seed, "private", *own), client), {}, control)

    return Clients(state, len(task.clients), first, backbone.logit_scale.device)


def size(*groups: Tensors) -> int:
    """Bytes of the tensors' numbers."""
    return sum(tensor.nbytes for tensors in groups for tensor in tensors.values())


def _mean_losses(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    return {f"loss_{name}": fmean(update.losses[name] for update in updates) for name in updates[0].losses}
