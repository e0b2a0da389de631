"""About how long a run takes, from a round of some of its clients."""

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

CLIENTS = 2  # or as many as there are processes
ENOUGH = 0.8  # seconds of a round in which what is done for the first time weighs little


def seconds_of_run(runner: ClientRunner, workers: Workers[Towers]) -> float:
    """Trains some of the clients for one epoch, evaluates them, and multiplies.

    They are two, or with more processes as many as those, or some would have nothing to do. Where that is soon over it
    only warms up, and what counts is a second round, of as many clients as that time has room for: a longer look, and
    of groups as they will be. The processes must have been started. Other jobs on the machine slow down what they meet.
    """
    spec, data = runner.spec, runner.data
    method, settings, task = spec.method, spec.settings, data.task
    short = replace(settings, rounds=1, local_epochs=1, participation=1.0, path_points=1, eval_every=1)

    def first_round(clients: tuple[Client, ...]) -> tuple[dict[str, Any], ClientState | None]:
        part = replace(task, clients=clients, new_clients=())
        timed = RunSpec(method, part, spec.backbone, short, spec.seed, spec.aggregator)
        with State.create() as state:
            # Where the method fine-tunes, that would be a second one.
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
    tuned = len(task.clients) if method.finetune_epochs and not personal else 0  # models that are read in the end
    return training + once * (models * evaluations + tuned)


def _examples(clients: Sequence[Client]) -> int:
    return sum(len(client.train) for client in clients)
