"""A paired bootstrap over test images, which tells whether a difference is larger than chance in the choice of images.

Letters in shapes: R resamples, N clients, A points of a path, n test images of base classes, m test images of novel
classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedpgp.evaluation.metrics import area

METRICS = ("local", "base", "novel", "hm", "cm", "area")
RESAMPLES = 2000
SEED = 0
CHUNK = 16  # clients processed together, with the images that any of them owns; at most 255, to be counted in a byte

Figures = Mapping[str, NDArray[np.float64]]  # metric -> [1 + R], first for all images, then for each resample


@dataclass(frozen=True)
class Outcomes:
    """The test images that the clients of one run classified correctly, with eight images in a byte (np.packbits).

    Attributes
    ----------
    alphas
        [A], the points of the path, ascending. The last one is 1, for the clients' own models.
    base
        [A, N, ⌈n/8⌉], whether each client's answer is correct, for the test images of base classes.
    novel
        [A, N, ⌈m/8⌉], the same for the test images of novel classes; m is 0 if there are none.
    own
        [N, ⌈n/8⌉], whether a test image of base classes is one of the client's own.
    base_images, novel_images
        n and m.
    """

    alphas: NDArray[np.float64]
    base: NDArray[np.uint8]
    novel: NDArray[np.uint8]
    own: NDArray[np.uint8]
    base_images: int
    novel_images: int

    def unpack(self, name: str, clients: slice = slice(None), point: int = -1) -> NDArray[np.bool_]:
        """Return one value for each image, [clients, images].

        Parameters
        ----------
        name
            "base", "novel" or "own".
        clients
            The clients to return.
        point
            Index of a point of the path, for "base" and "novel".
        """
        count = self.novel_images if name == "novel" else self.base_images
        rows = self.own if name == "own" else getattr(self, name)[point]
        return np.unpackbits(rows[clients], axis=1, count=count).astype(np.bool_)

    def local(self, alpha: float) -> list[float]:
        """Return the Local accuracy of each client in percent, at a point α of the path."""
        (point,) = np.flatnonzero(self.alphas == alpha).tolist()
        accuracies: list[float] = []
        for chunk in _chunks(self):
            own, right = self.unpack("own", chunk), self.unpack("base", chunk, point)
            accuracies += (100 * (own & right).sum(1) / np.maximum(own.sum(1), 1)).tolist()
        return accuracies


@dataclass(frozen=True)
class Difference:
    """A difference of two methods in percentage points, with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain zero."""
        return self.low > 0 or self.high < 0


def resampled(run: Outcomes, alpha: float = 1.0) -> Figures:
    """Return every metric of a run in percent, for the test images and for each resample of them.

    All runs of a task, with all clients and seeds, use the same resampled images. Therefore the intervals only cover
    the choice of test images. The standard deviation over the seeds covers the other sources of chance.

    Parameters
    ----------
    run
        The correct answers of the run.
    alpha
        A point of the path.
    """
    base_counts, novel_counts, narrow_counts = _both_counts(run.base_images, run.novel_images)
    local = _local(run, narrow_counts)
    tested = {"base": _of_all(run, "base", base_counts)}
    if run.novel_images:
        tested["novel"] = _of_all(run, "novel", novel_counts)
    both = _harmonic(*tested.values())
    (chosen,) = np.flatnonzero(run.alphas == alpha)
    own = {"local": local[chosen], **{name: values[chosen] for name, values in tested.items()}}
    metrics = {
        **own,
        "hm": _harmonic(*own.values()),
        "cm": (local[chosen] + both[chosen]) / 2,
        "area": area(100 * local, 100 * both) / 100,
    }
    return {name: 100 * metrics[name] for name in METRICS if name in metrics}


def differences(first: Sequence[Figures], second: Sequence[Figures]) -> dict[str, Difference]:
    """Return the difference first − second in every metric that both methods have.

    Parameters
    ----------
    first, second
        Results of `resampled`, one for each seed.
    """
    drawn = {
        name: np.mean([run[name] for run in first], axis=0) - np.mean([other[name] for other in second], axis=0)
        for name in METRICS
        if name in first[0] and name in second[0]
    }
    return {
        name: Difference(float(values[0]), *map(float, np.quantile(values[1:], [0.025, 0.975])))
        for name, values in drawn.items()
    }


@lru_cache(maxsize=2)
def _both_counts(
    base_images: int, novel_images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Return `_counts` of the base and the novel images, and of the base images in float32, the same for every run.

    Sums for one client are exact in float32 and take half the time.
    """
    rng = np.random.default_rng(SEED)
    base, novel = _counts(rng, base_images), _counts(rng, novel_images) if novel_images else np.zeros((0, 0))
    return base, novel, base.astype(np.float32)


def _counts(rng: np.random.Generator, images: int) -> NDArray[np.float64]:
    """Return how often each image counts [images, 1 + R]: once, and then its number in each resample."""
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.concatenate([np.ones((images, 1)), drawn.T], axis=1)


def _local(run: Outcomes, counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean over the clients of their accuracy on their own images, [A, 1 + R]."""
    total, clients = np.zeros((len(run.alphas), 1 + RESAMPLES)), np.zeros(1 + RESAMPLES)
    for chunk in _chunks(run):
        mine = np.unpackbits(run.own[chunk], axis=1, count=run.base_images)
        hits = np.unpackbits(run.base[:, chunk] & run.own[chunk], axis=2, count=run.base_images)
        anyone = mine.any(0)
        drawn = counts if anyone.all() else counts[anyone]
        own = mine[:, anyone].astype(np.float32) @ drawn  # [clients, 1 + R], number of the client's own images
        right = hits[:, :, anyone].reshape(len(hits) * len(mine), len(drawn)).astype(np.float32) @ drawn
        # If a resample has none of a client's own images, the mean of this resample omits the client.
        shares = right.reshape(*hits.shape[:2], -1) / np.maximum(own, 1).astype(np.float64)
        total += shares.sum(1)
        clients += (own > 0).sum(0)
    return np.divide(total, clients, out=np.full_like(total, np.nan), where=clients > 0)


def _of_all(run: Outcomes, name: str, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the clients of their accuracy on all images of a test set, [A, 1 + R]."""
    images, packed = len(counts), getattr(run, name)
    hits = np.zeros((len(run.alphas), images))  # number of clients with a correct answer for each image
    for chunk in _chunks(run):
        hits += np.unpackbits(packed[:, chunk], axis=2, count=images).sum(1, dtype=np.uint8)
    return hits @ counts / len(run.own) / images  # sums of integers are exact in any order


def _chunks(run: Outcomes) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(run.own), CHUNK)]


def _harmonic(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(values) / (1 / stacked).sum(0), 0.0)
