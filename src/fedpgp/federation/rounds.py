"""The loop: broadcast, local training, aggregation, evaluation."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any, Protocol

from fedpgp.aggregators import Download, Server
from fedpgp.backbone import Towers
from fedpgp.errors import TooFewError, TrainingError
from fedpgp.evaluation.evaluator import Evaluation, path_alphas, without_standing_path
from fedpgp.evaluation.metrics import summary
from fedpgp.federation.client import ClientUpdate, in_groups, train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.run_spec import Clients, RunSpec
from fedpgp.federation.state import ClientState, State, on_device
from fedpgp.runtime.workers import Workers

Joining = Callable[[int, Server], dict[str, Any]]  # a round's number, the server -> what its record gets


class ClientPool(Protocol):
    """The clients of a run, wherever they are. forgiving: a round of too few updates is lost, and the run goes on."""

    @property
    def forgiving(self) -> bool: ...

    @property
    def refused(self) -> int:
        """How many clients sent what is no update in the last `train`: they are faulty."""
        ...

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        """What comes of the local training of those who are sent something in a round, ascending by client.

        Of some nothing may come; then `round_notes` says why.
        """
        ...

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        """What clients keep of a round, by client, where it is to be kept beside the server."""
        ...

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        """How all clients' models and the shared part alone do after a round; alphas: as for `Evaluator`.

        None where nobody could be asked.
        """
        ...

    def round_notes(self, number: int) -> Mapping[str, Any]:
        """What there is to say of a round beside figures, for its record."""
        ...


def federate(runner: ClientRunner, workers: Workers[Towers], state: State) -> Iterator[dict[str, Any]]:
    """Runs the rounds that `state` has not finished yet and yields the record of each when it is safe in the state.

    What server and clients keep, and the last evaluation, are in the state, and only there: memory and the time of a
    round depend on those who take part, but for rounds that are evaluated. A method that trains nothing has one
    round, with number 0.
    """
    pool = LocalClients(runner, runner.spec.states(state.client), workers)
    return run_rounds(runner.spec, pool, state, joining(runner, workers))


def run_rounds(spec: RunSpec, pool: ClientPool, state: State, join: Joining | None = None) -> Iterator[dict[str, Any]]:
    """The rounds of `federate` with clients that are anywhere. join: what new clients add to the last record.

    Raises TrainingError where the last round could not be evaluated.
    """
    method, settings, aggregator = spec.method, spec.settings, spec.aggregator
    kept = state.server()
    server = spec.begin() if kept is None else on_device(kept, spec.device)
    numbers = spec.rounds
    last = numbers[-1]
    taken_part = Counter(client for record in state.records() for client in record["participants"])
    for number in numbers[state.rounds() :]:
        started = time.perf_counter()
        updates: Sequence[ClientUpdate] = []
        downloads: Mapping[int, Download] = {}
        finetunes, lost = spec.finetunes(number), ""
        if spec.trains:
            downloads = spec.downloads(number, server)
            updates = pool.train(number, downloads)
            if updates and not finetunes:
                try:
                    server = aggregator.without(pool.refused).aggregate(server, [update.upload for update in updates])
                except TooFewError as error:
                    if not pool.forgiving:
                        raise
                    updates, lost = [], str(error)
        trained = time.perf_counter()
        with state.round():
            state.keep(server, pool.kept(number, updates))
            record: dict[str, Any] = {"round": number, "participants": [u.upload.client for u in updates]}
            record |= {"lost": lost} if lost else {}
            if number % settings.eval_every == 0 or number == last:
                alphas = path_alphas(settings.path_points if number == last else 1)
                evaluation = pool.evaluate(number, server, alphas)
                if evaluation is not None:
                    evaluation = without_standing_path(evaluation, spec.tests)
                    state.keep_evaluation(evaluation)
                    record |= {**summary(evaluation.clients), "shared": evaluation.shared, **evaluation.diagnostics}
                elif number == last:
                    raise TrainingError(
                        f"no client could be evaluated after round {number}, the last: the rounds before it are safe,"
                        " go on when clients are there"
                    )
            if number == last and join is not None:
                record |= join(number, server)
            travels = bool(updates) and (finetunes or not method.pooled)  # pooled training has no clients to send to
            record["bytes_down"] = round(fmean(sent.size for sent in downloads.values())) if travels else 0
            record["bytes_up"] = round(fmean(u.upload.size for u in updates)) if travels and not finetunes else 0
            if updates:
                taken_part.update(record["participants"])
                federated = max(taken_part.values()) - finetunes
                epochs = settings.local_epochs * federated + method.finetune_epochs * finetunes
                record |= {f"loss_{term}": fmean(u.losses[term] for u in updates) for term in updates[0].losses}
                record |= method.privacy_spent(epochs)
                record |= aggregator.privacy_spent(federated)
            record |= pool.round_notes(number)
            record |= {"seconds_training": trained - started, "seconds_evaluation": time.perf_counter() - trained}
            state.keep_record(number, record)
        yield record


@dataclass(frozen=True)
class LocalClients:
    """All clients in this process and its workers; what they keep is in the state."""

    runner: ClientRunner
    clients: Clients
    workers: Workers[Towers]
    forgiving: bool = False
    refused: int = 0

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        jobs = [self.runner.job(number, client, sent, self.clients[client]) for client, sent in downloads.items()]
        return list(chain.from_iterable(self.workers.map(train_clients, in_groups(self.workers.towers, jobs))))

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        spec = self.runner.spec
        if spec.method.pooled and not spec.finetunes(number):
            # Client 0 stood for all of them: what it trained is no private part of its own.
            (update,) = updates
            return {0: replace(self.clients[0], optimizer=update.own.optimizer)} if update.own.optimizer else {}
        return {update.upload.client: own_after(spec, number, update) for update in updates}

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation:
        def sent(client: int) -> Download:
            return self.runner.spec.aggregator.download(server, client)

        return self.runner.evaluate(number, server.shared, sent, self.clients.__getitem__, self.workers, alphas)

    def round_notes(self, number: int) -> Mapping[str, Any]:
        return {}


def own_after(spec: RunSpec, number: int, update: ClientUpdate) -> ClientState:
    """What a client keeps of a round; after fine-tuning the shared part, too, as it trained it."""
    return replace(update.own, kept=update.upload.shared) if spec.finetunes(number) else update.own


def joining(runner: ClientRunner, workers: Workers[Towers]) -> Joining | None:
    """New clients fit their private part to their images, the shared part stays; how they do, each and on the mean.

    None where a task has no new clients.
    """
    data = runner.data
    if not data.task.new_clients:
        return None
    task = replace(data.task, clients=data.task.new_clients, new_clients=())
    spec = runner.spec.for_newcomers(task, runner.spec.settings.join_epochs)
    newcomers = ClientRunner(spec, replace(data, task=task))

    def join(number: int, server: Server) -> dict[str, Any]:
        with State.create() as state:
            pool = LocalClients(newcomers, spec.states(state.client), workers)
            if pool.clients[0].private:
                updates = pool.train(number + 1, spec.downloads(number + 1, server))
                state.keep(server, {update.upload.client: replace(update.own, kept={}) for update in updates})
            accuracies = pool.evaluate(number, server, path_alphas(1)).clients
        names = ("local", *task.tests)
        return {
            "new": fmean(accuracies["local"]),
            "new_clients": [{name: float(accuracies[name][new.id]) for name in names} for new in task.clients],
        }

    return join
