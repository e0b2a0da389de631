"""Evaluation of the clients' models on all test sets.

Letters in shapes: N clients, K contexts, C classes, D feature width, n images of a test set, A points of a path.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.backbone import Towers
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.tasks import Client, Task
from fedpgp.errors import TrainingError
from fedpgp.evaluation.inference import Question, Reading, Texts, VisualFeatures, answer
from fedpgp.evaluation.metrics import accuracies, evaluation_sets, summary
from fedpgp.methods import Frozen, Method, Params
from fedpgp.methods.base import logits
from fedpgp.runtime.workers import Workers

CHUNK = 32  # clients evaluated at a time, so that memory does not grow with the number of clients

Logits = Mapping[str, Tensor]  # test set -> logits of a model [n, C]


@dataclass(frozen=True)
class Point:
    """The results of one model for each client on all test sets.

    Attributes
    ----------
    clients
        Accuracies in percent [N], by the names of `accuracies`.
    correct
        By test set, [N, ⌈n/8⌉], whether the answer for each image is correct, eight images in a byte (np.packbits).
    """

    clients: Mapping[str, NDArray[np.float64]]
    correct: Mapping[str, NDArray[np.uint8]]

    @classmethod
    def of(cls, task: Task, clients: Sequence[Client], right: Sequence[Mapping[str, NDArray[np.bool_]]]) -> "Point":
        """Compute the accuracies of some clients.

        Parameters
        ----------
        task
            The task.
        clients
            The clients.
        right
            For each client, or once for all clients: by test set, [n], whether the answer is correct.
        """
        correct = {name: np.stack([row[name] for row in right]) for name in right[0]}
        return Point(
            accuracies(task, clients, correct), {name: np.packbits(correct[name], axis=1) for name in task.tests}
        )

    @classmethod
    def joined(cls, points: Sequence["Point"]) -> "Point":
        """Concatenate results of different clients."""
        first = points[0]
        return Point(
            {name: np.concatenate([point.clients[name] for point in points]) for name in first.clients},
            {name: np.concatenate([point.correct[name] for point in points]) for name in first.correct},
        )


@dataclass(frozen=True)
class Evaluation(Point):
    """The results of the clients' models and of the shared model on all test sets.

    Attributes
    ----------
    shared
        `summary` of the shared model's accuracies on the clients' images, or None if the shared part cannot predict.
    diagnostics
        Means over the clients of `Method.diagnostics`.
    path
        Results by α < 1, ascending, for the models between the shared model (α = 0) and the clients' own models (α =
        1). Empty if it was not requested, or if all points are equal.
    predicted
        By test set, [N, n], the column of the class that each client's model predicts.
    confidence
        By test set, [N, n], the probability of this class.
    """

    shared: Mapping[str, float] | None
    diagnostics: Mapping[str, float]
    path: Mapping[float, Point] = field(default_factory=dict)
    predicted: Mapping[str, NDArray[np.int16]] = field(default_factory=dict)
    confidence: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)


def path_alphas(points: int) -> tuple[float, ...]:
    """Return `points` evenly spaced values of α from 0 to 1, or only 1 for one point."""
    return tuple(i / (points - 1) for i in range(points)) if points > 1 else (1.0,)


@dataclass(frozen=True)
class _TestSoftmax:
    """Test sets with the same classes, which use the same text features."""

    sets: Mapping[str, ImageFeatures]
    classes: tuple[int, ...]
    tokens: ClassTokens
    frozen: Frozen


class Evaluator:
    """Evaluates the clients of one task. It prepares once the data that no round changes.

    Parameters
    ----------
    method
        The method.
    task
        The task.
    images
        Features of each of `evaluation_sets(task)`, by name.
    tokens
        Tokens of all class names of the task.
    frozen
        Constants of all classes of the task.
    """

    def __init__(
        self, method: Method, task: Task, images: Mapping[str, ImageFeatures], tokens: ClassTokens, frozen: Frozen
    ):
        self._method, self._task, self._images, self._tokens = method, task, images, tokens
        together: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, test in evaluation_sets(task).items():
            together[tuple(test.classes)].append(name)
        self._targets = {name: test.targets for name, test in evaluation_sets(task).items()}
        self._softmaxes = [
            _TestSoftmax(
                sets={name: images[name] for name in names},
                classes=classes,
                tokens=tokens.select(classes),
                frozen=frozen.select(classes),
            )
            for classes, names in together.items()
        ]
        self._base = next(i for i, softmax in enumerate(self._softmaxes) if softmax.classes == tuple(task.base))

    @torch.no_grad()
    def __call__(
        self,
        round_number: int,
        shared: Params | None,
        model: Callable[[int], Params],
        workers: Workers[Towers],
        alphas: Sequence[float] = (1.0,),
    ) -> Evaluation:
        """Evaluate every client's model and the shared model on all test sets after a round.

        Parameters
        ----------
        round_number
            Number of the round.
        shared
            The shared model, or None if the shared part cannot predict.
        model
            Returns the model of a client. It is called when the model is used, so it may read it from a disk.
        workers
            Worker processes with the towers.
        alphas
            Points of the path, ascending; the last is 1.

        Raises
        ------
        TrainingError
            Logits are not finite. The error names client and round.
        """
        task, texts = self._task, Texts(self._tokens, self._method.position, workers)
        answers_of = partial(self._answers, VisualFeatures(self._method, self._images, workers), workers)
        start: Logits | None = None
        shared_right = []
        if shared is not None:
            start = answers_of(f"the shared model after round {round_number}", shared, texts(self._prompts(shared)))
            shared_right.append(self._right(start))
        elif len(alphas) > 1:
            start = self._hand_written()
        of_shared: list[Point] = []
        points: dict[float, list[Point]] = defaultdict(list)
        predicted: dict[str, list[NDArray[np.int16]]] = defaultdict(list)
        confidence: dict[str, list[NDArray[np.float16]]] = defaultdict(list)
        diagnostics: dict[str, list[float]] = defaultdict(list)
        for at in range(0, len(task.clients), CHUNK):
            chunk = task.clients[at : at + CHUNK]
            paths = [self._path(model(client.id), alphas) for client in chunk]
            readings = [reading for path in paths for params in path.values() for reading in self._prompts(params)]
            read = iter(texts(readings))
            outcomes: dict[tuple[int, ...], _Outcome] = {}
            right: dict[float, list[Mapping[str, NDArray[np.bool_]]]] = defaultdict(list)
            for client, path in zip(chunk, paths, strict=True):
                path_texts = {alpha: [next(read) for _ in self._softmaxes] for alpha in path}
                own = path[1.0]
                tensors = (own.shared, own.private, own.received, own.memory)
                # Models with the same tensors are evaluated only once.
                same = tuple(id(tensor) for group in tensors for tensor in group.values())
                if same not in outcomes:
                    answers_at = partial(answers_of, f"client {client.id} after round {round_number}")
                    outcomes[same] = self._outcome(answers_at, path, path_texts, start, alphas)
                for alpha, of_point in outcomes[same].right.items():
                    right[alpha].append(of_point)
                for name in task.tests:
                    predicted[name].append(outcomes[same].predicted[name])
                    confidence[name].append(outcomes[same].confidence[name])
                base_text, base = path_texts[1.0][self._base], self._softmaxes[self._base]
                for name, figure in self._method.diagnostics(base_text, base.frozen).items():
                    diagnostics[name].append(figure)
            for alpha, rows in right.items():
                points[alpha].append(Point.of(task, chunk, rows))
            if shared_right:
                of_shared.append(Point.of(task, chunk, shared_right))
        path_points = {alpha: Point.joined(of_chunks) for alpha, of_chunks in points.items()}
        last = path_points.pop(1.0)
        return Evaluation(
            clients=last.clients,
            correct=last.correct,
            shared=summary(Point.joined(of_shared).clients) if of_shared else None,
            diagnostics={name: fmean(figures) for name, figures in diagnostics.items()},
            path=path_points,
            predicted={name: np.stack(rows) for name, rows in predicted.items()},
            confidence={name: np.stack(rows) for name, rows in confidence.items()},
        )

    def _prompts(self, params: Params) -> list[Reading]:
        """Return the contexts that do not depend on the image, for each softmax."""
        constant = self._method.constant_prompts(params)
        return [
            Reading([*self._method.prompts(params, softmax.frozen), *constant], softmax.classes)
            for softmax in self._softmaxes
        ]

    def _path(self, params: Params, alphas: Sequence[float]) -> dict[float, Params]:
        """Return the models of a client to evaluate: its own model, and the method's models on the path."""
        paths = {alpha: self._method.path(params, alpha) for alpha in alphas if alpha < 1}
        return {**{alpha: model for alpha, model in paths.items() if model is not None}, 1.0: params}

    def _hand_written(self) -> Logits:
        """Return the logits of the hand-written prompts: the start of the path if the shared part cannot predict."""
        return {
            name: logits(softmax.frozen.guidance, images.pooled, softmax.frozen)
            for softmax in self._softmaxes
            for name, images in softmax.sets.items()
        }

    def _outcome(
        self,
        answers_of: Callable[[Params, Sequence[Tensor]], Logits],
        path: Mapping[float, Params],
        texts: Mapping[float, Sequence[Tensor]],
        start: Logits | None,
        alphas: Sequence[float],
    ) -> "_Outcome":
        """Evaluate a client's models on all test sets. texts: text features of each model of `path`."""
        own = answers_of(path[1.0], texts[1.0])
        right = {}
        for alpha in alphas:
            if alpha == 1:
                answers = own
            elif alpha in path:
                answers = answers_of(path[alpha], texts[alpha])
            else:  # if logits are linear in text features, this mixes the text features without normalization
                assert start is not None, "a path of more than one point has a start"
                answers = {name: (1 - alpha) * start[name] + alpha * of_set for name, of_set in own.items()}
            right[alpha] = self._right(answers)
        tests = self._task.tests
        return _Outcome(
            right,
            predicted={name: own[name].argmax(-1).to(torch.int16).cpu().numpy() for name in tests},
            confidence={name: own[name].softmax(-1).amax(-1).to(torch.float16).cpu().numpy() for name in tests},
        )

    def _answers(
        self, visual: VisualFeatures, workers: Workers[Towers], place: str, params: Params, texts: Sequence[Tensor]
    ) -> Logits:
        """Return the logits of a model for all test sets. place: the name of the model in an error."""
        method, answers = self._method, {}
        in_pieces = {"patches", "text per image"} & {*method.reads}
        try:
            seen = visual(params) if "image tower" in method.reads else {}
            for softmax, text in zip(self._softmaxes, texts, strict=True):
                for name, images in softmax.sets.items():
                    asked = Question(method, params, text, images, softmax.tokens, softmax.frozen, seen.get(name))
                    answers[name] = (
                        torch.cat(workers.map(answer, asked.pieces())) if in_pieces else answer(workers.towers, asked)
                    )
                    # If the sum is finite, all are. It takes 1/25 of the time of checking each of them.
                    if not (answers[name].sum().isfinite() or answers[name].isfinite().all()):
                        remedy = f"Lower {method.name}.learning_rate, or change other settings of [{method.name}]"
                        raise TrainingError("the logits are not finite", remedy=remedy)
        except TrainingError as error:
            raise TrainingError(
                error.problem or str(error),
                where=f"{place}, in evaluation",
                got=error.got,
                remedy=error.remedy,
            ) from error
        return answers

    def _right(self, answers: Logits) -> Mapping[str, NDArray[np.bool_]]:
        """Return by test set, [n], whether the answer is correct."""
        return {name: of_set.argmax(-1).cpu().numpy() == self._targets[name] for name, of_set in answers.items()}


class _Outcome(NamedTuple):
    """The answers of a client's models.

    right: by α and test set, [n], whether the answer is correct. predicted, confidence: as in `Evaluation`, for the
    client's own model.
    """

    right: Mapping[float, Mapping[str, NDArray[np.bool_]]]
    predicted: Mapping[str, NDArray[np.int16]]
    confidence: Mapping[str, NDArray[np.float16]]


def without_standing_path(evaluation: Evaluation, tests: Collection[str]) -> Evaluation:
    """Return the evaluation without its path if all points of the path have the same results on the test sets."""

    def equal(point: Point) -> bool:
        if evaluation.correct:
            return all(np.array_equal(rows, evaluation.correct[name]) for name, rows in point.correct.items())
        return all(np.array_equal(point.clients[name], evaluation.clients[name]) for name in ("local", *tests))

    return replace(evaluation, path={}) if all(equal(point) for point in evaluation.path.values()) else evaluation
