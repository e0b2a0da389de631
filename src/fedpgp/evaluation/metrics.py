"""The accuracies Local, Base and Novel, and the metrics computed from them.

Letters in shapes: N clients, n images of a test set, A points of a path.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.tasks import Client, EvaluationSet, Task

Correct = Mapping[str, NDArray[np.bool_]]  # test set -> [clients, n], whether each client's answer is correct


def evaluation_sets(task: Task) -> dict[str, EvaluationSet]:
    """Return the task's test sets and, as "validation", the validation images of its base classes."""
    return {**task.tests, "validation": task.validation}


def accuracies(task: Task, clients: Sequence[Client], correct: Correct) -> dict[str, NDArray[np.float64]]:
    """Return the accuracies of some clients in percent, by name.

    "local" is the accuracy on the client's own test images. "base" is the accuracy on the test images of all base
    classes. For both, the softmax has all base classes. "novel" is the accuracy on the test images of the classes that
    no client trains on, with only these classes in the softmax. "validation_local" and "validation_base" are "local"
    and "base" on the validation images.

    Parameters
    ----------
    task
        The task.
    clients
        The clients.
    correct
        By test set, whether each answer is correct: [clients, n], or [1, n] for one model of all clients.
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
    """Return whether each image of the base or validation set is one of a client's own, [clients, n]."""
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
    """Return the means over the clients of all accuracies, and the combined metrics "hm", "others" and "cm".

    "hm" is the harmonic mean of Local, Base and Novel. "others" is HM(Base, Novel), the harmonic mean of Base and
    Novel. "cm" is (Local + HM(Base, Novel)) / 2, as in FedMGP. Without novel classes, "others" is Base, and "hm" is the
    harmonic mean of Local and Base.
    """
    means = {name: fmean(values) for name, values in clients.items()}
    local, base = means["local"], means["base"]
    on_others = [base, means["novel"]] if "novel" in means else [base]
    others = harmonic_mean(on_others)
    return {**means, "hm": harmonic_mean([local, *on_others]), "others": others, "cm": (local + others) / 2}


def area_of(path: Sequence[Mapping[str, float]]) -> float:
    """Return the `area` of a path, given the `summary` of each point."""
    local, others = (np.array([point[name] for point in path]) for name in ("local", "others"))
    return float(area(local, others))


def area(local: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under the trade-off between Local and HM(Base, Novel), in percent of the whole square.

    The curve has, for each value of Local, the best HM of the models with at least this Local. The area is therefore
    the area that the points dominate (the hypervolume with the origin as reference). It does not interpolate between
    models, and the area of a single model is the rectangle Local × HM.

    Parameters
    ----------
    local
        Local of each model [A, …], in percent.
    others
        HM(Base, Novel) of each model [A, …], in percent.

    Returns
    -------
    […], with the dimensions after A.
    """
    order = np.argsort(-local, axis=0, kind="stable")
    local = np.take_along_axis(local, order, axis=0)
    best = np.maximum.accumulate(np.take_along_axis(others, order, axis=0), axis=0)
    below = np.concatenate([local[1:], np.zeros_like(local[:1])])
    return ((local - below) * best).sum(0) / 100


def class_accuracies(
    correct: NDArray[np.bool_], targets: NDArray[np.int64], classes: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the accuracy of each client on each class in percent, [N, C], with NaN for a class without an image.

    Parameters
    ----------
    correct
        [N, n], whether the answer is correct.
    targets
        [n], the column of each image's class.
    classes
        C, number of classes.
    among
        [N, n], whether the image counts for the client; None: all images.
    """
    counted = np.ones_like(correct) if among is None else among
    rows = [
        (np.bincount(targets[own & right], minlength=classes), np.bincount(targets[own], minlength=classes))
        for right, own in zip(correct, counted, strict=True)
    ]
    right, images = (np.stack(part).astype(np.float64) for part in zip(*rows, strict=True))
    return np.divide(100 * right, images, out=np.full_like(right, np.nan), where=images > 0)


def macro_accuracy(of_classes: NDArray[np.float64]) -> float:
    """Return the mean over the clients of the mean over their classes with images, from `class_accuracies`."""
    return float(np.nanmean(of_classes, axis=1).mean())


def calibration_error(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Return the expected calibration error of n answers in percentage points.

    The source is Guo et al. 2017, arXiv 1706.04599, eq. 3.

    Parameters
    ----------
    confidence
        [n], the probability of the predicted class, from 0 to 1.
    correct
        [n], whether the answer is correct.
    bins
        Number of bins of equal width, (k/bins, (k+1)/bins].
    """
    place = bin_of(confidence, bins)
    gap = np.bincount(place, np.asarray(confidence, dtype=np.float64) - correct, minlength=bins)
    return float(100 * np.abs(gap).sum() / len(confidence))


def bin_of(confidence: NDArray[np.floating[Any]], bins: int) -> NDArray[np.int64]:
    """Return [n] the bin of each confidence from 0 to 1, of bins (k/bins, (k+1)/bins]; 0 is in the first bin."""
    return np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
