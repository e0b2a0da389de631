"""The loop: broadcast, local training, averaging, evaluation."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.evaluate import Evaluation, client_accuracies, evaluate, summary, validation_accuracies
from fedpgp.federation.client import ClientJob, LocalTraining, in_groups, train_clients
from fedpgp.federation.server import federated_average, participants
from fedpgp.methods import ClientUpdate, Frozen, Method, Params
from fedpgp.randomness import generator
from fedpgp.workers import Workers


@dataclass(frozen=True)
class Schedule:
    """The part of the rounds that the server decides.

    independent_private: every client draws its own first private part; the public code gives all the same.
    everyone_first: all clients take part in round 1, whatever the participation, as in the public code.
    """

    rounds: int
    participation: float
    everyone_first: bool
    independent_private: bool
    training: LocalTraining


@dataclass(frozen=True)
class Data:
    """A task with its image features: `train` [n, D] of the whole training split, `tests` of each test set."""

    task: Task
    train: Tensor
    tests: Mapping[str, Tensor]


@dataclass(frozen=True)
class Round:
    """The state after a round, and what is recorded of it.

    private: the private part of every client. bytes_up, bytes_down: of one participant.
    """

    number: int
    shared: Mapping[str, Tensor]
    private: Sequence[Mapping[str, Tensor]]
    evaluation: Evaluation
    record: Mapping[str, Any]


def federate(
    method: Method, data: Data, backbone: Backbone, schedule: Schedule, seed: int, workers: Workers
) -> Iterator[Round]:
    """Runs the federation and yields after every round; a method that trains nothing yields once, as round 0."""
    task = data.task
    tokens = backbone.class_tokens(task.class_names)
    frozen = Frozen(backbone.template_features(method.template, task.class_names), backbone.logit_scale)
    base_tokens, base_frozen = tokens.select(task.base), frozen.select(task.base)

    shared: Mapping[str, Tensor] = method.init_shared(task, backbone, generator(seed, "shared"))
    private: list[Mapping[str, Tensor]] = [
        method.init_private(task, backbone, _private_draws(schedule, seed, client)) for client in task.clients
    ]

    def look(number: int, updates: Sequence[ClientUpdate], seconds: float) -> Round:
        started = time.perf_counter()
        clients = [Params(shared, own) for own in private]
        evaluation = evaluate(method, clients, task, data.tests, tokens, frozen, workers)
        record = {
            "round": number,
            "participants": [update.client for update in updates],
            **summary(client_accuracies(task, evaluation.clients)),
            **validation_accuracies(task, evaluation.clients),
            **_mean_losses(updates),
            **evaluation.diagnostics,
            "bytes_down": size(shared) if updates else 0,
            "bytes_up": size(updates[0].params.shared) if updates else 0,
            "seconds_training": seconds,
            "seconds_evaluation": time.perf_counter() - started,
        }
        return Round(number, shared, list(private), evaluation, record)

    if not shared and not any(private):
        yield look(0, [], 0.0)
        return

    for number in range(1, schedule.rounds + 1):
        started = time.perf_counter()
        share = 1.0 if number == 1 and schedule.everyone_first else schedule.participation
        jobs = [
            ClientJob(
                method=method,
                params=Params(shared, private[client.id]),
                images=data.train[torch.from_numpy(client.train)],
                labels=_columns(task, client).to(data.train.device),
                classes=base_tokens,
                frozen=base_frozen,
                training=schedule.training,
                seed=seed,
                round=number,
                client=client.id,
            )
            for client in (task.clients[i] for i in participants(len(task.clients), share, seed, number))
        ]
        updates = list(chain.from_iterable(workers.map(train_clients, in_groups(backbone.text, jobs))))
        shared = federated_average([u.params.shared for u in updates], [u.examples for u in updates])
        for update in updates:
            private[update.client] = update.params.private
        yield look(number, updates, time.perf_counter() - started)


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors' numbers."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _mean_losses(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    terms = updates[0].losses if updates else {}
    return {f"loss_{name}": fmean(update.losses[name] for update in updates) for name in terms}


def _private_draws(schedule: Schedule, seed: int, client: Client) -> torch.Generator:
    return generator(seed, "private", *([client.id] if schedule.independent_private else []))


def _columns(task: Task, client: Client) -> Tensor:
    """The column of the base softmax for each training image of a client."""
    return torch.from_numpy(EvaluationSet(task.train, task.base, client.train).targets)
