"""About how long a run takes, from a round of two of its clients."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedpgp.aggregators import Aggregator
from fedpgp.backbone import Backbone
from fedpgp.config import FederationConfig
from fedpgp.data.tasks import Client
from fedpgp.federation.jobs import Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.state import State
from fedpgp.methods import Method
from fedpgp.workers import Workers

CLIENTS = 2


def seconds_of_run(
    method: Method,
    data: Data,
    backbone: Backbone,
    settings: FederationConfig,
    seed: int,
    workers: Workers,
    aggregator: Aggregator,
) -> float:
    """Trains two of the clients for one epoch, evaluates them, and multiplies.

    Within a factor of two: larger groups of clients are faster, and other jobs on the machine slow down what they meet.
    """
    task = data.task
    few = task.clients[:CLIENTS]
    cut = replace(settings, rounds=1, local_epochs=1, participation=1.0, path_points=1)
    with State.create() as state:
        records: list[dict[str, Any]] = list(
            federate(
                method,
                replace(data, task=replace(task, clients=few, new_clients=())),
                backbone,
                cut,
                seed,
                workers,
                state,
                aggregator,
            )
        )
        own = state.client(few[0].id)
    epochs = settings.rounds * settings.local_epochs * settings.participation + method.finetune_epochs
    training = records[0]["seconds_training"] * epochs * _examples(task.clients) / _examples(few)
    personal = method.keeps_shared or (own is not None and bool(own.private))
    models = 1 + len(task.clients) if personal else 1
    once = records[0]["seconds_evaluation"] / (1 + len(few) if personal else 1)
    evaluations = math.ceil(settings.rounds / settings.eval_every) if records[0]["round"] else 1
    if type(method).path is not Method.path:
        evaluations += settings.path_points - 1
    return training + once * models * evaluations


def _examples(clients: Sequence[Client]) -> int:
    return sum(len(client.train) for client in clients)
