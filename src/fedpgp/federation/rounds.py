"""The loop: broadcast, local training, aggregation, evaluation."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any, Protocol

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server
from fedpgp.backbone import Backbone
from fedpgp.config import FederationConfig
from fedpgp.evaluate import Evaluation, path_alphas
from fedpgp.federation.client import ClientUpdate, LocalTraining, in_groups, train_clients
from fedpgp.federation.jobs import Data, Federation, client_states
from fedpgp.federation.state import Clients, ClientState, State, on_device
from fedpgp.methods import Method
from fedpgp.metrics import summary
from fedpgp.workers import Workers


def rounds_of(method: Method, settings: FederationConfig) -> int:
    """How many records a run has: its rounds, and one more where the method fine-tunes after them."""
    return settings.rounds + bool(method.finetune_epochs)


class Fleet(Protocol):
    """The clients of a run, wherever they are."""

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        """What comes of the local training of those who are sent something in a round, ascending by client."""
        ...

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        """What clients keep of a round, by client, where it is to be kept beside the server."""
        ...

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation:
        """How all clients' models and the shared part alone do after a round; alphas: as for `Evaluator`."""
        ...


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
    federation = Federation(method, data, backbone, settings, seed, method.aggregator or aggregator or FedAvg())
    clients = client_states(method, data.task, backbone, settings, seed, state, aggregator)

    def join(number: int, server: Server) -> dict[str, Any]:
        return _join(method, data, backbone, settings, seed, workers, server, number)

    return run_rounds(federation, _Here(federation, clients, workers), state, join if data.task.new_clients else None)


def run_rounds(
    federation: Federation,
    fleet: Fleet,
    state: State,
    join: Callable[[int, Server], dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """The rounds of `federate` with clients that are anywhere. join: what new clients add to the last record."""
    method, settings, aggregator = federation.method, federation.settings, federation.aggregator
    kept = state.server()
    server = federation.begin() if kept is None else on_device(kept, federation.device)
    trains = federation.trains
    numbers = range(1, rounds_of(method, settings) + 1) if trains else range(1)
    taken_part = Counter(client for record in state.records() for client in record["participants"])
    for number in numbers[state.rounds() :]:
        started = time.perf_counter()
        updates: Sequence[ClientUpdate] = []
        downloads: Mapping[int, Download] = {}
        finetunes = number > settings.rounds
        if trains:
            downloads = federation.downloads(number, server)
            updates = fleet.train(number, downloads)
            if not finetunes:
                server = aggregator.aggregate(server, [update.upload for update in updates])
        trained = time.perf_counter()
        with state.round():
            pools = method.pooled and not finetunes
            state.keep(server, fleet.kept(number, updates))
            record: dict[str, Any] = {"round": number, "participants": [u.upload.client for u in updates]}
            if number % settings.eval_every == 0 or number == numbers[-1]:
                alphas = path_alphas(settings.path_points if number == numbers[-1] else 1)
                evaluation = fleet.evaluate(number, server, alphas)
                state.keep_evaluation(evaluation)
                record |= {**summary(evaluation.clients), "shared": evaluation.shared, **evaluation.diagnostics}
            if number == numbers[-1] and join is not None:
                record |= join(number, server)
            record |= {"bytes_down": 0, "bytes_up": 0}
            if updates:
                taken_part.update(record["participants"])
                epochs = settings.local_epochs * (max(taken_part.values()) - finetunes)
                record |= _mean_losses(updates) | method.spent(epochs + method.finetune_epochs * finetunes)
            if updates and not pools:
                record["bytes_down"] = round(fmean(download.size for download in downloads.values()))
            if updates and not pools and not finetunes:
                record["bytes_up"] = round(fmean(update.upload.size for update in updates))
            record |= {"seconds_training": trained - started, "seconds_evaluation": time.perf_counter() - trained}
            state.keep_record(number, record)
        yield record


@dataclass(frozen=True)
class _Here:
    """All clients in this process and its workers; what they keep is in the state."""

    federation: Federation
    clients: Clients
    workers: Workers

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        jobs = [self.federation.job(number, client, sent, self.clients[client]) for client, sent in downloads.items()]
        return list(chain.from_iterable(self.workers.map(train_clients, in_groups(self.workers.towers, jobs))))

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        finetunes = number > self.federation.settings.rounds
        if self.federation.method.pooled and not finetunes:
            return {}
        return {
            one.upload.client: replace(one.own, kept=one.upload.shared) if finetunes else one.own for one in updates
        }

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation:
        return self.federation.evaluate(number, server, self.clients, self.workers, alphas)


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
    federation = Federation(method, newcomers, backbone, settings, seed, FedAvg())
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


def _mean_losses(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    return {f"loss_{name}": fmean(update.losses[name] for update in updates) for name in updates[0].losses}
