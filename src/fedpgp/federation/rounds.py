"""The loop: broadcast, local training, averaging, evaluation."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.config import FederationConfig
from fedpgp.data.tasks import Task
from fedpgp.evaluate import Evaluation, Evaluator, summary
from fedpgp.federation.client import ClientJob, LocalTraining, in_groups, train_clients
from fedpgp.federation.server import federated_average, participants
from fedpgp.federation.state import PrivateParts, State
from fedpgp.methods import ClientUpdate, Frozen, Method, Params
from fedpgp.randomness import generator
from fedpgp.workers import Workers


@dataclass(frozen=True)
class Data:
    """A task with its image features: `train` [n, D] of the whole training split, `tests` of each test set."""

    task: Task
    train: Tensor
    tests: Mapping[str, Tensor]


def federate(
    method: Method,
    data: Data,
    backbone: Backbone,
    settings: FederationConfig,
    seed: int,
    workers: Workers,
    state: State,
) -> Iterator[dict[str, Any]]:
    """Runs the rounds that `state` has not finished yet and yields the record of each when it is safe in the state.

    The shared part, the private parts and the last evaluation are in the state, and only there: memory and the time of
    a round depend on those who take part, but for rounds that are evaluated. A method that trains nothing has one
    round, with number 0.
    """
    task = data.task
    tokens = backbone.class_tokens(task.class_names)
    frozen = Frozen(backbone.template_features(method.template, task.class_names), backbone.logit_scale)
    base_tokens, base_frozen = tokens.select(task.base), frozen.select(task.base)
    evaluator = Evaluator(method, task, data.tests, tokens, frozen)
    training = LocalTraining(settings.local_epochs, settings.batch_size, settings.momentum, settings.weight_decay)
    columns = np.full(len(task.class_names), -1)  # of the base softmax, by label
    columns[list(task.base)] = range(len(task.base))

    private = private_parts(method, task, backbone, settings, seed, state)
    kept = state.shared()
    shared: Mapping[str, Tensor] = (
        method.init_shared(task, backbone, generator(seed, "shared"))
        if kept is None
        else {name: tensor.to(backbone.logit_scale.device) for name, tensor in kept.items()}
    )
    trains = bool(shared or private[0])
    numbers = range(1, settings.rounds + 1) if trains else range(1)
    for number in numbers[state.rounds() :]:
        started = time.perf_counter()
        updates: list[ClientUpdate] = []
        if trains:
            share = 1.0 if number == 1 and settings.everyone_first else settings.participation
            chosen = participants(len(task.clients), share, seed, number)
            jobs = [
                ClientJob(
                    method=method,
                    params=Params(shared, private[client.id]),
                    images=data.train[torch.from_numpy(client.train)],
                    labels=torch.from_numpy(columns[task.train.labels[client.train]]).to(data.train.device),
                    classes=base_tokens,
                    frozen=base_frozen,
                    training=training,
                    seed=seed,
                    round=number,
                    client=client.id,
                )
                for client in (task.clients[i] for i in chosen)
            ]
            updates = list(chain.from_iterable(workers.map(train_clients, in_groups(backbone.text, jobs))))
            shared = federated_average([u.params.shared for u in updates], [u.examples for u in updates])
        trained = time.perf_counter()
        with state.round():
            state.keep(shared, {update.client: update.params.private for update in updates})
            record: dict[str, Any] = {"round": number, "participants": [update.client for update in updates]}
            if number % settings.eval_every == 0 or number == numbers[-1]:
                evaluation = evaluator(number, shared, private, workers)
                state.keep_evaluation(evaluation)
                record |= _figures(evaluation)
            record |= {
                **_mean_losses(updates),
                "bytes_down": size(shared) if updates else 0,
                "bytes_up": size(updates[0].params.shared) if updates else 0,
                "seconds_training": trained - started,
                "seconds_evaluation": time.perf_counter() - trained,
            }
            state.keep_record(number, record)
        yield record


def private_parts(
    method: Method, task: Task, backbone: Backbone, settings: FederationConfig, seed: int, state: State
) -> PrivateParts:
    """The private part of every client of a run: what it kept or, before its first round, what it starts from.

    All start from the same, or with `settings.independent_private` each from a draw of its own.
    """

    def draw(*client: int) -> Mapping[str, Tensor]:
        return method.init_private(task, backbone, generator(seed, "private", *client))

    same = draw()
    first = draw if settings.independent_private else lambda client: same
    return PrivateParts(state, len(task.clients), first, backbone.logit_scale.device)


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors' numbers."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {**summary(evaluation.clients), "shared": evaluation.shared, **evaluation.diagnostics}


def _mean_losses(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    terms = updates[0].losses if updates else {}
    return {f"loss_{name}": fmean(update.losses[name] for update in updates) for name in terms}
