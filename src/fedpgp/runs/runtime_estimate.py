"""Estimate of the time of a run, from one round of a few clients."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedpgp.backbone import Towers
from fedpgp.data.tasks import Client
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import ClientState, State
from fedpgp.methods import Method
from fedpgp.runtime.workers import Workers

CLIENTS = 2  # clients of the timed round; more if there are more processes
ENOUGH = 0.8  # seconds; in a longer round, the time of the warm-up does not matter


def seconds_of_run(runner: ClientRunner, workers: Workers[Towers]) -> float:
    """Estimate the time of a run: train some clients for one epoch, evaluate them, and multiply the times.

    Two clients are trained, or one for each process. If this round is short, it is only a warm-up. Then a second round
    is timed, with more clients, whose groups are as large as in the run. Other jobs on the machine slow down the round.

    Parameters
    ----------
    runner
        All clients of the run.
    workers
        Worker processes, already started.

    Returns
    -------
    The estimate in seconds.
    """
    spec, data = runner.spec, runner.data
    method, settings, task = spec.method, spec.settings, data.task
    short = replace(settings, rounds=1, local_epochs=1, participation=1.0, path_points=1, eval_every=1)

    def first_round(clients: tuple[Client, ...]) -> tuple[dict[str, Any], ClientState | None]:
        part = replace(task, clients=clients, new_clients=())
        timed = RunSpec(method, part, spec.backbone, short, spec.seed, spec.aggregator)
        with State.create() as state:
            # A method that fine-tunes would have a second round, which is not timed.
            record = next(federate(ClientRunner(timed, replace(data, task=part)), workers, state))
            return record, state.client(clients[0].id)

    few = task.clients[: max(CLIENTS, workers.count)]
    record, own = first_round(few)
    took = record["seconds_training"] + record["seconds_evaluation"]
    if took < ENOUGH:
        few = task.clients[: max(len(few), int(len(few) * ENOUGH / max(took, 0.001)))]
        record, own = first_round(few)
    epochs = settings.rounds * settings.local_epochs * settings.participation + method.finetune_epochs
    training = record["seconds_training"] * epochs * _examples(task.clients) / _examples(few)
    personal = method.personalizes_shared or (own is not None and bool(own.private))
    models = 1 + len(task.clients) if personal else 1
    once = record["seconds_evaluation"] / (1 + len(few) if personal else 1)
    evaluations = math.ceil(settings.rounds / settings.eval_every) if record["round"] else 1
    if type(method).path is not Method.path:
        evaluations += settings.path_points - 1
    tuned = len(task.clients) if method.finetune_epochs and not personal else 0  # models evaluated after fine-tuning
    return training + once * (models * evaluations + tuned)


def _examples(clients: Sequence[Client]) -> int:
    return sum(len(client.train) for client in clients)
