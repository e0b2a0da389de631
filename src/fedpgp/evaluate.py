"""Accuracies from features, prompts and labels.

Letters: N clients, K contexts, C classes, D feature width, n images of a test set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.data.tasks import EvaluationSet, Task
from fedpgp.methods import Frozen, Method, Params
from fedpgp.workers import Workers

Predictions = Mapping[str, NDArray[np.int16]]  # test set -> [N, n] predicted columns of its softmax


@dataclass(frozen=True)
class Evaluation:
    """What the clients' models, and the shared part alone, predict.

    shared: the same with N = 1, or None where a method's shared part predicts nothing by itself.
    diagnostics: means over the clients.
    """

    clients: Predictions
    shared: Predictions | None
    diagnostics: Mapping[str, float]


def evaluation_sets(task: Task) -> dict[str, EvaluationSet]:
    """The task's test sets and, as "validation", the validation images of its base classes."""
    return {**task.tests, "validation": task.validation}


def evaluate(
    method: Method,
    clients: Sequence[Params],
    task: Task,
    features: Mapping[str, Tensor],
    tokens: ClassTokens,
    frozen: Frozen,
    workers: Workers,
) -> Evaluation:
    """Lets every client's model, and the shared part alone, classify every test set.

    clients: the parameters of each client; features: [n, D] for each of `evaluation_sets(task)`; tokens and frozen: of
    every class name of the task.
    """
    shared = method.without_private(clients[0])
    everybody = [*clients, *([shared] if shared is not None else [])]
    texts = _encode([method.prompts(params) for params in everybody], tokens, workers)
    predicted = {
        name: np.stack(
            [
                _classify(method, params, text, test, features[name], frozen)
                for params, text in zip(everybody, texts, strict=True)
            ]
        )
        for name, test in evaluation_sets(task).items()
    }
    base = list(task.base)
    figures = [method.diagnostics(text[:, base], frozen.select(base)) for text in texts[: len(clients)]]
    return Evaluation(
        clients={name: rows[: len(clients)] for name, rows in predicted.items()},
        shared=None if shared is None else {name: rows[len(clients) :] for name, rows in predicted.items()},
        diagnostics={name: fmean(figure[name] for figure in figures) for name in figures[0]},
    )


def _classify(
    method: Method, params: Params, text: Tensor, test: EvaluationSet, images: Tensor, frozen: Frozen
) -> NDArray[np.int16]:
    classes = list(test.classes)
    logits = method.predict(params, text[:, classes], images, frozen.select(classes))
    return logits.argmax(-1).cpu().numpy().astype(np.int16)


def _encode(prompts: Sequence[Tensor], tokens: ClassTokens, workers: Workers) -> list[Tensor]:
    """Text features [K, C, D] for the prompts [K, M, d] of each of several models; equal contexts are encoded once."""
    contexts = {row.cpu().numpy().tobytes(): row for rows in prompts for row in rows}
    encoded = workers.map(_encode_one, [(row, tokens) for row in contexts.values()])
    features = dict(zip(contexts, encoded, strict=True))
    return [
        torch.stack([features[row.cpu().numpy().tobytes()] for row in rows])
        if len(rows)
        else torch.empty(0, len(tokens), 0)
        for rows in prompts
    ]


def _encode_one(text: TextEncoder, job: tuple[Tensor, ClassTokens]) -> Tensor:
    context, tokens = job
    with torch.no_grad():
        return text(context[None], tokens)[0]


def client_accuracies(task: Task, predictions: Predictions) -> list[dict[str, float]]:
    """Local, Base, Novel (and Unseen) of each client, in percent.

    Local: the test images of the client's own classes. Base: those of all base classes. In both the softmax runs over
    all base classes. Novel: the novel classes with only their names in the softmax.
    """
    correct = {name: predictions[name] == test.targets for name, test in evaluation_sets(task).items()}
    figures = []
    for row, own in enumerate(own_images(task, "base")):
        figure = {"local": percent(correct["base"][row, own])}
        figure |= {name: percent(correct[name][row]) for name in task.tests}
        figures.append(figure)
    return figures


def shared_accuracies(task: Task, predictions: Predictions) -> dict[str, float]:
    """The same for the shared part alone; its Local is the mean over the clients' classes."""
    correct = predictions["base"][0] == task.tests["base"].targets
    figure = {"local": fmean(percent(correct[own]) for own in own_images(task, "base"))}
    return figure | {name: percent(predictions[name][0] == test.targets) for name, test in task.tests.items()}


def validation_accuracies(task: Task, predictions: Predictions) -> dict[str, float]:
    """Mean Local and Base on the validation images."""
    correct = predictions["validation"] == task.validation.targets
    own = own_images(task, "validation")
    return {
        "validation_local": fmean(percent(correct[row, mine]) for row, mine in enumerate(own)),
        "validation_base": fmean(percent(row) for row in correct),
    }


def own_images(task: Task, name: str) -> list[NDArray[np.bool_]]:
    """For each client, which images of a test set are of its own classes."""
    test = evaluation_sets(task)[name]
    labels = test.dataset.labels[test.images]
    return [np.isin(labels, client.classes) for client in task.clients]


def percent(correct: NDArray[np.bool_]) -> float:
    """The share of true entries, in percent."""
    return 100 * float(np.mean(correct))


def summary(clients: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the clients, with HM and CM."""
    return combined({name: fmean(client[name] for client in clients) for name in clients[0]})


def combined(means: Mapping[str, float]) -> dict[str, float]:
    """Adds HM, the harmonic mean of Local, Base and Novel, and CM = (Local + HM(Base, Novel)) / 2 (FedMGP)."""
    local, base, novel = means["local"], means["base"], means["novel"]
    return {**means, "hm": harmonic_mean([local, base, novel]), "cm": (local + harmonic_mean([base, novel])) / 2}
