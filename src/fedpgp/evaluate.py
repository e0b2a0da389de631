"""Accuracies from features, prompts and labels.

Letters: N clients, K contexts, C classes, D feature width, n images of a test set.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, Position
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.errors import TrainingError
from fedpgp.methods import Frozen, Method, Params
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
    """Test sets with the same classes, so that one product serves them all; images: [n, D] of one after the other."""

    sets: Mapping[str, slice]
    classes: tuple[int, ...]
    targets: NDArray[np.int64]
    images: Tensor
    frozen: Frozen


class _Reading(NamedTuple):
    """Contexts to be read with some classes."""

    contexts: Sequence[Tensor]
    classes: tuple[int, ...]


_Key = tuple[bytes, tuple[int, ...]]


class Evaluator:
    """Evaluates the clients of one task; what no round changes is prepared once.

    features: [n, D] for each of `evaluation_sets(task)`; tokens and frozen: of every class name of the task.
    """

    def __init__(self, method: Method, task: Task, features: Mapping[str, Tensor], tokens: ClassTokens, frozen: Frozen):
        self._method, self._task, self._tokens = method, task, tokens
        together: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, test in evaluation_sets(task).items():
            together[test.classes].append(name)
        self._softmaxes = [self._softmax(names, classes, features, frozen) for classes, names in together.items()]
        self._base = next(i for i, softmax in enumerate(self._softmaxes) if softmax.classes == tuple(task.base))

    def _softmax(
        self, names: Sequence[str], classes: Sequence[int], features: Mapping[str, Tensor], frozen: Frozen
    ) -> _Softmax:
        tests = evaluation_sets(self._task)
        ends = np.cumsum([0, *(len(tests[name].images) for name in names)]).tolist()
        return _Softmax(
            sets={name: slice(*ends[i : i + 2]) for i, name in enumerate(names)},
            classes=tuple(classes),
            targets=np.concatenate([tests[name].targets for name in names]),
            images=torch.cat([features[name] for name in names]),
            frozen=frozen.select(classes),
        )

    @torch.no_grad()
    def __call__(
        self, round_number: int, shared: Params | None, model: Callable[[int], Params], workers: Workers
    ) -> Evaluation:
        """Lets every client's model, and the shared part alone, classify every test set after a round.

        shared: None where it predicts nothing by itself; model: of a client, which may be read from a disk when it is
        asked for. Raises TrainingError, naming client and round, where text features are not finite.
        """
        task, texts = self._task, _Texts(self._tokens, self._method.position, workers)
        shared_correct = None
        if shared is not None:
            (read,) = texts([self._prompts(shared)])
            shared_correct = self._classify([shared], [read])
        correct: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
        clients: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        of_shared: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        diagnostics: dict[str, list[float]] = defaultdict(list)
        for start in range(0, len(task.clients), CHUNK):
            chunk = task.clients[start : start + CHUNK]
            models = [model(client.id) for client in chunk]
            chunk_texts = texts([self._prompts(params) for params in models])
            found = self._classify(models, chunk_texts)
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

    def _prompts(self, params: Params) -> list[_Reading]:
        """What must be read for each softmax."""
        constant = self._method.constant_prompts(params)
        return [
            _Reading([*self._method.prompts(params, softmax.frozen), *constant], softmax.classes)
            for softmax in self._softmaxes
        ]

    def _classify(self, models: Sequence[Params], texts: Sequence[Sequence[Tensor]]) -> Correct:
        found: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
        for params, of_softmax in zip(models, texts, strict=True):
            for softmax, text in zip(self._softmaxes, of_softmax, strict=True):
                logits = self._method.predict(params, text, softmax.images, softmax.frozen)
                right = logits.argmax(-1).cpu().numpy() == softmax.targets
                for name, part in softmax.sets.items():
                    found[name].append(right[part])
        return {name: np.stack(rows) for name, rows in found.items()}


class _Texts:
    """Text features of many models, a chunk at a time; contexts of the chunk or the one before are encoded once.

    So the global context, which every model reads, is encoded once in an evaluation, and one that stands before the
    classes of several softmaxes is read once with all class names.
    """

    def __init__(self, tokens: ClassTokens, position: Position, workers: Workers):
        self._tokens, self._position, self._workers = tokens, position, workers
        self._known: dict[_Key, Tensor] = {}

    def __call__(self, models: Sequence[Sequence[_Reading]]) -> list[list[Tensor]]:
        """Text features [K, C, D] for every softmax of every model."""
        everything = tuple(range(len(self._tokens)))
        wanted: dict[_Key, Tensor] = {}
        keys = [[[self._key(context, one.classes) for context in one.contexts] for one in model] for model in models]
        for of_model, model in zip(keys, models, strict=True):
            for of_one, one in zip(of_model, model, strict=True):
                wanted |= zip(of_one, one.contexts, strict=True)
        known = {key: self._known[key] for key in wanted if key in self._known}
        new = [key for key in wanted if key not in known]
        jobs = [(wanted[key][None], self._tokens.select(key[1] or everything), self._position) for key in new]
        known |= zip(new, self._workers.map(_encode, jobs), strict=True)
        self._known = known
        return [
            [self._text(of_one, one) for of_one, one in zip(of_model, model, strict=True)]
            for of_model, model in zip(keys, models, strict=True)
        ]

    def _key(self, context: Tensor, classes: tuple[int, ...]) -> _Key:
        """A context's numbers, and the classes where it has one for each of them."""
        numbers = context.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        return numbers, classes if context.dim() == 3 else ()

    def _text(self, keys: Sequence[_Key], one: _Reading) -> Tensor:
        if not keys:
            return torch.empty(0, len(one.classes), 0)
        return torch.stack([self._known[k] if k[1] else self._known[k][list(one.classes)] for k in keys])


def _encode(text: TextEncoder, job: tuple[Tensor, ClassTokens, Position]) -> Tensor:
    with torch.no_grad():
        return text(*job)[0]


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
