"""Local, Base, Novel and what is made of them.

Letters: N clients, n images of a test set, A points of a path.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.tasks import Client, EvaluationSet, Task

Correct = Mapping[str, NDArray[np.bool_]]  # test set -> [clients, n], which images each of some clients gets right


def evaluation_sets(task: Task) -> dict[str, EvaluationSet]:
    """The task's test sets and, as "validation", the validation images of its base classes."""
    return {**task.tests, "validation": task.validation}


def accuracies(task: Task, clients: Sequence[Client], correct: Correct) -> dict[str, NDArray[np.float64]]:
    """Local, Base and the task's other test sets for some clients, in percent, and both on the validation images.

    Local: the client's own test images. Base: those of all base classes. In both the softmax runs over all base
    classes. Novel: what nobody trains on, with only its classes in the softmax.

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
    """[clients, n]: which images of the base or validation set are each client's own."""
    test = evaluation_sets(task)[name]
    labels, domains = test.dataset.labels[test.images], test.dataset.domains[test.images]
    return np.stack(
        [
            np.isin(labels, client.classes) & (client.domains is None or np.isin(domains, client.domains))
            if client.own is None
            else np.isin(test.images, client.own[name])
            for client in clients
        ]
    )


def summary(clients: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> dict[str, float]:
    """Means over the clients of all figures, with HM and CM of these.

    HM: the harmonic mean of Local, Base and Novel. "others": HM(Base, Novel). CM = (Local + HM(Base, Novel)) / 2
    (FedMGP). Where nothing is novel, Base stands in its place, and HM is that of Local and Base.
    """
    means = {name: fmean(values) for name, values in clients.items()}
    local, base = means["local"], means["base"]
    on_others = [base, means["novel"]] if "novel" in means else [base]
    others = harmonic_mean(on_others)
    return {**means, "hm": harmonic_mean([local, *on_others]), "others": others, "cm": (local + others) / 2}


def area_of(path: Sequence[Mapping[str, float]]) -> float:
    """The area of the models that `summary` was made of."""
    local, others = (np.array([point[name] for point in path]) for name in ("local", "others"))
    return float(area(local, others))


def area(local: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """[…] the area under the trade-off of Local against HM(Base, Novel), in percent of the square.

    local, others: [A, …] in percent. For each Local, the best HM of a model that has at least as much: the area that
    the points dominate (the hypervolume with the origin as reference), so nothing is interpolated between models, and a
    single model has the rectangle Local × HM.
    """
    order = np.argsort(-local, axis=0, kind="stable")
    local = np.take_along_axis(local, order, axis=0)
    best = np.maximum.accumulate(np.take_along_axis(others, order, axis=0), axis=0)
    below = np.concatenate([local[1:], np.zeros_like(local[:1])])
    return ((local - below) * best).sum(0) / 100


def class_accuracies(
    correct: NDArray[np.bool_], targets: NDArray[np.int64], classes: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """[N, C] percent of each class's images that each client gets right; NaN for a class without an image.

    correct: [N, n]; targets: [n] columns; among: [N, n] the images that count for a client, None: all.
    """
    counted = np.ones_like(correct) if among is None else among
    rows = [
        (np.bincount(targets[own & right], minlength=classes), np.bincount(targets[own], minlength=classes))
        for right, own in zip(correct, counted, strict=True)
    ]
    right, images = (np.stack(part).astype(np.float64) for part in zip(*rows, strict=True))
    return np.divide(100 * right, images, out=np.full_like(right, np.nan), where=images > 0)


def macro_accuracy(of_classes: NDArray[np.float64]) -> float:
    """The mean over clients of the mean over the classes that have images; of_classes: as `class_accuracies`."""
    return float(np.nanmean(of_classes, axis=1).mean())


def calibration_error(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """The expected calibration error of n answers, in percentage points (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    confidence: [n] the probability of the class that was answered, 0 to 1; correct: [n] whether it is right. The bins
    have equal widths, (k/bins, (k+1)/bins].
    """
    place = np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, np.asarray(confidence, dtype=np.float64) - correct, minlength=bins)
    return float(100 * np.abs(gap).sum() / len(confidence))
