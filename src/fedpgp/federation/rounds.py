"""The loop over the rounds: broadcast, local training, aggregation, evaluation."""

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
from fedpgp.federation.protection import protect
from fedpgp.federation.run_spec import Clients, RunSpec
from fedpgp.federation.state import ClientState, State, on_device
from fedpgp.federation.state_check import check_state
from fedpgp.runtime.workers import Workers

Joining = Callable[[int, Server], dict[str, Any]]  # number of the round, server -> entries of the round's record


class ClientPool(Protocol):
    """The clients of a run, in this process or elsewhere."""

    @property
    def forgiving(self) -> bool:
        """Whether the run continues after a round with too few updates, whose result is then lost."""
        ...

    @property
    def refused(self) -> int:
        """Number of clients whose updates were invalid in the last call of `train`. These clients are faulty."""
        ...

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        """Train the clients that have a download, and return their updates, ascending by client.

        Clients that failed are missing. `round_notes` then gives the reasons.
        """
        ...

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        """Return the clients' states after a round, by client, if they must be stored next to the server's state."""
        ...

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        """Evaluate all clients' models and the shared model after a round, or return None if no client answered.

        alphas: as for `Evaluator`.
        """
        ...

    def round_notes(self, number: int) -> Mapping[str, Any]:
        """Return further entries for the record of a round."""
        ...


def federate(runner: ClientRunner, workers: Workers[Towers], state: State) -> Iterator[dict[str, Any]]:
    """Run the rounds that are not finished in `state`, and yield the record of each round after it has been stored.

    Only the state stores the tensors of the server and of the clients, and the last evaluation. Therefore the memory
    and the time of a round depend on the number of participants and not on the number of clients, except for rounds
    with an evaluation. A method without training has one round, with number 0.

    Parameters
    ----------
    runner
        The clients of the run.
    workers
        Worker processes with the towers.
    state
        The state of the run, which is updated.
    """
    pool = LocalClients(runner, runner.spec.states(state.client), workers)
    return run_rounds(runner.spec, pool, state, joining(runner, workers))


def run_rounds(spec: RunSpec, pool: ClientPool, state: State, join: Joining | None = None) -> Iterator[dict[str, Any]]:
    """Run the rounds as `federate` does, with any pool of clients.

    Parameters
    ----------
    spec
        The specification of the run.
    pool
        The clients.
    state
        The state of the run, which is updated.
    join
        Returns the entries of new clients in the last record.

    Raises
    ------
    OutputError
        The state does not fit the run.
    TrainingError
        No client could be evaluated after the last round.
    """
    method, settings, aggregator = spec.method, spec.settings, spec.aggregator
    check_state(spec, state)
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
        clipped: list[int] = []
        refused: dict[int, str] = {}
        if spec.trains:
            downloads = spec.downloads(number, server)
            updates = pool.train(number, downloads)
            if settings.protection and not finetunes:
                received = {client: sent.shared for client, sent in downloads.items()}
                updates, clipped, refused = protect(updates, received, settings.examples)
            if updates and not finetunes:
                rule = aggregator.without(pool.refused + len(refused))
                try:
                    server = rule.aggregate(server, [update.upload for update in updates])
                except TooFewError as error:
                    if not pool.forgiving:
                        raise
                    updates, lost = [], str(error)
        trained = time.perf_counter()
        with state.round():
            state.keep(server, pool.kept(number, updates))
            record: dict[str, Any] = {"round": number, "participants": [u.upload.client for u in updates]}
            record |= {"lost": lost} if lost else {}
            record |= {"clipped": clipped} if clipped else {}
            if number % settings.eval_every == 0 or number == last:
                alphas = path_alphas(settings.path_points if number == last else 1)
                evaluation = pool.evaluate(number, server, alphas)
                if evaluation is not None:
                    evaluation = without_standing_path(evaluation, spec.tests)
                    state.keep_evaluation(evaluation)
                    record |= {**summary(evaluation.clients), "shared": evaluation.shared, **evaluation.diagnostics}
                elif number == last:
                    raise TrainingError(
                        "no client answered in the evaluation",
                        where=f"round {number}, the last one",
                        remedy="Resume the run when clients are connected: all rounds before this one are stored",
                    )
            if number == last and join is not None:
                record |= join(number, server)
            travels = bool(updates) and (finetunes or not method.pooled)  # pooled training sends nothing to clients
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
            dropped = [{"client": client, "in": "train", "reason": reason} for client, reason in refused.items()]
            record |= {"dropped": [*record.get("dropped", ()), *dropped]} if dropped else {}
            record |= {"seconds_training": trained - started, "seconds_evaluation": time.perf_counter() - trained}
            state.keep_record(number, record)
        yield record


@dataclass(frozen=True)
class LocalClients:
    """All clients in this process and its workers. Their states are stored in the state of the run."""

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
            # Client 0 trained on the images of all clients, so the result is not its private part.
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
    """Return the state that a client keeps after a round. After fine-tuning, it includes the trained shared part."""
    return replace(update.own, kept=update.upload.shared) if spec.finetunes(number) else update.own


def joining(runner: ClientRunner, workers: Workers[Towers]) -> Joining | None:
    """Return a function that trains the private parts of new clients and evaluates them, or None without new clients.

    The shared part does not change. The record gets the accuracies of each new client, and their mean.
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
