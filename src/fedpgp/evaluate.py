"""Accuracies from images, prompts and labels.

Letters: N clients, K contexts, C classes, D feature width, n images of a test set.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.backbone.tokens import ClassTokens
from fedpgp.data.images import Images
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.errors import TrainingError
from fedpgp.methods import Frozen, Method, Params
from fedpgp.reading import PIECE, Question, Reading, Sights, Texts, answer
from fedpgp.workers import Workers

CHUNK = 32  # clients evaluated at a time, so that memory does not grow with their number

Correct = Mapping[str, NDArray[np.bool_]]  # test set -> [clients, n], which images each of some clients gets right


@dataclass(frozen=True)
class Evaluation:
    """How the clients' models, and the shared part alone, do on every test set.

    clients: [N] percent, by the names of `accuracies`.
    correct: by test set, [N, ⌈n/8⌉] which images each client gets right, eight in a byte (np.packbits).
    shared: means over the clients' classes, HM and CM, or None where a method's shared part predicts nothing by itself.
    diagnostics: means over the clients.
    """

    clients: Mapping[str, NDArray[np.float64]]
    correct: Mapping[str, NDArray[np.uint8]]
    shared: Mapping[str, float] | None
    diagnostics: Mapping[str, float]


def evaluation_sets(task: Task) -> dict[str, EvaluationSet]:
    """The task's test sets and, as "validation", the validation images of its base classes."""
    return {**task.tests, "validation": task.validation}


@dataclass(frozen=True)
class _Softmax:
    """Test sets with the same classes, so that one reading serves them all."""

    sets: Mapping[str, Images]
    targets: Mapping[str, NDArray[np.int64]]
    classes: tuple[int, ...]
    tokens: ClassTokens
    frozen: Frozen


class Evaluator:
    """Evaluates the clients of one task; what no round changes is prepared once.

    images: of each of `evaluation_sets(task)`; tokens and frozen: of every class name of the task.
    """

    def __init__(self, method: Method, task: Task, images: Mapping[str, Images], tokens: ClassTokens, frozen: Frozen):
        self._method, self._task, self._images, self._tokens = method, task, images, tokens
        together: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, test in evaluation_sets(task).items():
            together[tuple(test.classes)].append(name)
        self._softmaxes = [
            _Softmax(
                sets={name: images[name] for name in names},
                targets={name: evaluation_sets(task)[name].targets for name in names},
                classes=classes,
                tokens=tokens.select(classes),
                frozen=frozen.select(classes),
            )
            for classes, names in together.items()
        ]
        self._base = next(i for i, softmax in enumerate(self._softmaxes) if softmax.classes == tuple(task.base))

    @torch.no_grad()
    def __call__(
        self, round_number: int, shared: Params | None, model: Callable[[int], Params], workers: Workers
    ) -> Evaluation:
        """Lets every client's model, and the shared part alone, classify every test set after a round.

        shared: None where it predicts nothing by itself; model: of a client, which may be read from a disk when it is
        asked for. Raises TrainingError, naming client and round, where text features are not finite.
        """
        task, texts = self._task, Texts(self._tokens, self._method.position, workers)
        sights = Sights(self._method, self._images, workers) if "image tower" in self._method.reads else None
        shared_correct = None
        if shared is not None:
            (read,) = texts([self._prompts(shared)])
            shared_correct = self._classify(
                [f"the shared part after round {round_number}"], [shared], [read], sights, workers
            )
        correct: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
        clients: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        of_shared: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        diagnostics: dict[str, list[float]] = defaultdict(list)
        for start in range(0, len(task.clients), CHUNK):
            chunk = task.clients[start : start + CHUNK]
            models = [model(client.id) for client in chunk]
            chunk_texts = texts([self._prompts(params) for params in models])
            places = [f"client {client.id} after round {round_number}" for client in chunk]
            found = self._classify(places, models, chunk_texts, sights, workers)
            for name in task.tests:
                correct[name].append(np.packbits(found[name], axis=1))
            _extend(clients, accuracies(task, chunk, found))
            if shared_correct is not None:
                _extend(of_shared, accuracies(task, chunk, shared_correct))
            for client, of_softmax in zip(chunk, chunk_texts, strict=True):
                if not all(torch.isfinite(text).all() for text in of_softmax):
                    raise TrainingError(
                        f"the text features of client {client.id} are not finite after round {round_number}:"
                        f" change the settings of [{self._method.name}], most often to a lower learning_rate"
                    )
                of_base = of_softmax[self._base]
                for name, figure in self._method.diagnostics(of_base, self._softmaxes[self._base].frozen).items():
                    diagnostics[name].append(figure)
        return Evaluation(
            clients={name: np.concatenate(parts) for name, parts in clients.items()},
            correct={name: np.concatenate(parts) for name, parts in correct.items()},
            shared=None
            if shared_correct is None
            else summary({name: np.concatenate(parts) for name, parts in of_shared.items()}),
            diagnostics={name: fmean(figures) for name, figures in diagnostics.items()},
        )

    def _prompts(self, params: Params) -> list[Reading]:
        """What must be read for each softmax, whatever the image."""
        constant = self._method.constant_prompts(params)
        return [
            Reading([*self._method.prompts(params, softmax.frozen), *constant], softmax.classes)
            for softmax in self._softmaxes
        ]

    def _classify(
        self,
        places: Sequence[str],
        models: Sequence[Params],
        texts: Sequence[Sequence[Tensor]],
        sights: Sights | None,
        workers: Workers,
    ) -> Correct:
        """places: what a message calls each of the models."""
        found: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
        same: dict[tuple[int, ...], Mapping[str, NDArray[np.bool_]]] = {}
        for place, params, of_softmax in zip(places, models, texts, strict=True):
            tensors = (params.shared, params.private, params.received, params.memory)
            model = tuple(id(tensor) for group in tensors for tensor in group.values())  # many may share all they have
            if model not in same:
                try:
                    seen = None if sights is None else sights(params)
                    same[model] = self._right(params, of_softmax, seen, workers)
                except TrainingError as error:
                    raise TrainingError(f"{place}, in evaluation: {error}") from error
            for name, right in same[model].items():
                found[name].append(right)
        return {name: np.stack(rows) for name, rows in found.items()}

    def _right(
        self, params: Params, texts: Sequence[Tensor], seen: Mapping[str, Tensor] | None, workers: Workers
    ) -> Mapping[str, NDArray[np.bool_]]:
        """Which images of each test set a model gets right. seen: of each, where it is known, as `see` gives it."""
        method, found = self._method, {}
        in_pieces = {"patches", "text per image"} & {*method.reads}
        for softmax, text in zip(self._softmaxes, texts, strict=True):
            for name, images in softmax.sets.items():
                of_set = images.pooled if seen is None else seen[name]
                if in_pieces:
                    questions = (
                        Question(
                            method,
                            params,
                            text,
                            images[at : at + PIECE],
                            softmax.tokens,
                            softmax.frozen,
                            None if seen is None else of_set[at : at + PIECE],
                        )
                        for at in range(0, len(images), PIECE)
                    )
                    logits = torch.cat(workers.map(answer, questions))
                else:
                    logits = method.predict(params, text, of_set, softmax.frozen)
                if method.reads != ("text", "images") and not logits.isfinite().all():
                    raise TrainingError(
                        f"logits are not finite: change the settings of [{method.name}], most often to a lower"
                        " learning_rate"
                    )
                found[name] = logits.argmax(-1).cpu().numpy() == softmax.targets[name]
        return found


def _extend(columns: dict[str, list[NDArray[np.float64]]], found: Mapping[str, NDArray[np.float64]]) -> None:
    for name, values in found.items():
        columns[name].append(values)


def accuracies(task: Task, clients: Sequence[Client], correct: Correct) -> dict[str, NDArray[np.float64]]:
    """Local, Base, Novel (and Unseen) of some clients, in percent, and Local and Base on the validation images.

    Local: the test images of the client's own classes. Base: those of all base classes. In both the softmax runs over
    all base classes. Novel: the novel classes with only their names in the softmax.

    correct: [clients, n] of each test set, or [1, n] of one model for all of them.
    """

    def local(name: str) -> NDArray[np.float64]:
        own = own_images(task, clients, name)
        return 100 * (correct[name] & own).sum(1) / own.sum(1)

    def overall(name: str) -> NDArray[np.float64]:
        return np.broadcast_to(100 * correct[name].mean(1), len(clients))

    return {
        "local": local("base"),
        **{name: overall(name) for name in task.tests},
        "validation_local": local("validation"),
        "validation_base": overall("validation"),
    }


def own_images(task: Task, clients: Sequence[Client], name: str) -> NDArray[np.bool_]:
    """[clients, n]: which images of a test set are of each client's own classes."""
    test = evaluation_sets(task)[name]
    labels = test.dataset.labels[test.images]
    return np.stack([np.isin(labels, client.classes) for client in clients])


def summary(clients: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> dict[str, float]:
    """Means over the clients of all figures, with HM and CM."""
    return combined({name: fmean(values) for name, values in clients.items()})


def combined(means: Mapping[str, float]) -> dict[str, float]:
    """Adds HM, the harmonic mean of Local, Base and Novel, and CM = (Local + HM(Base, Novel)) / 2 (FedMGP)."""
    local, base, novel = means["local"], means["base"], means["novel"]
    return {**means, "hm": harmonic_mean([local, base, novel]), "cm": (local + harmonic_mean([base, novel])) / 2}
