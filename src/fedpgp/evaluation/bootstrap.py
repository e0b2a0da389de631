"""Is the difference of two methods more than the luck of the test images? Paired bootstrap over test images.

Letters: R resamples, N clients, A points of a path, n test images of base classes, m of novel ones.
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
CHUNK = 16  # clients looked at together, at the images that any of them owns; at most 255: their number fits a byte

Figures = Mapping[str, NDArray[np.float64]]  # metric -> [1 + R], of all images as they are and of each resample


@dataclass(frozen=True)
class Outcomes:
    """Which test images the clients of one run got right, eight images in a byte (np.packbits).

    alphas: [A] of the path, ascending; the last is 1, the clients' own models. base: [A, N, ⌈n/8⌉] and novel:
    [A, N, ⌈m/8⌉], with m = 0 where nothing is novel; own: [N, ⌈n/8⌉], which base images are the client's own.
    """

    alphas: NDArray[np.float64]
    base: NDArray[np.uint8]
    novel: NDArray[np.uint8]
    own: NDArray[np.uint8]
    base_images: int
    novel_images: int

    def unpack(self, name: str, clients: slice = slice(None), point: int = -1) -> NDArray[np.bool_]:
        """[clients, images] of "base", "novel" or "own" for some of the clients, at a point of the path."""
        count = self.novel_images if name == "novel" else self.base_images
        rows = self.own if name == "own" else getattr(self, name)[point]
        return np.unpackbits(rows[clients], axis=1, count=count).astype(np.bool_)

    def local(self, alpha: float) -> list[float]:
        """Local of each client in percent, at an α of the path."""
        (point,) = np.flatnonzero(self.alphas == alpha).tolist()
        accuracies: list[float] = []
        for chunk in _chunks(self):
            own, right = self.unpack("own", chunk), self.unpack("base", chunk, point)
            accuracies += (100 * (own & right).sum(1) / np.maximum(own.sum(1), 1)).tolist()
        return accuracies


@dataclass(frozen=True)
class Difference:
    """A difference of two methods in percentage points, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def resampled(run: Outcomes, alpha: float = 1.0) -> Figures:
    """Every metric of a run in percent, as it is and in each resample of the test images.

    The same resampled images count for every run of a task, all its clients and all seeds, so that only the images'
    luck is judged; how much the seeds differ is the standard deviation's to say. alpha: one of the path.
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
    """First minus second in every metric that both have; one entry of each sequence per seed."""
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
    """`_counts` of the base and the novel images, drawn once for all runs of a task, and the first in float32.

    Sums for one client are exact in float32, and take half the time.
    """
    rng = np.random.default_rng(SEED)
    base, novel = _counts(rng, base_images), _counts(rng, novel_images) if novel_images else np.zeros((0, 0))
    return base, novel, base.astype(np.float32)


def _counts(rng: np.random.Generator, images: int) -> NDArray[np.float64]:
    """[images, 1 + R] how often every image counts: once, and in each resample."""
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.concatenate([np.ones((images, 1)), drawn.T], axis=1)


def _local(run: Outcomes, counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """[A, 1 + R] mean over the clients of their accuracy on the images of their own classes."""
    total, clients = np.zeros((len(run.alphas), 1 + RESAMPLES)), np.zeros(1 + RESAMPLES)
    for chunk in _chunks(run):
        mine = np.unpackbits(run.own[chunk], axis=1, count=run.base_images)
        hits = np.unpackbits(run.base[:, chunk] & run.own[chunk], axis=2, count=run.base_images)
        anyone = mine.any(0)
        drawn = counts if anyone.all() else counts[anyone]
        own = mine[:, anyone].astype(np.float32) @ drawn  # [clients, 1 + R] images of the client's own
        right = hits[:, :, anyone].reshape(len(hits) * len(mine), len(drawn)).astype(np.float32) @ drawn
        # A client with so few test images that a resample holds none of them does not count in it.
        shares = right.reshape(*hits.shape[:2], -1) / np.maximum(own, 1).astype(np.float64)
        total += shares.sum(1)
        clients += (own > 0).sum(0)
    return np.divide(total, clients, out=np.full_like(total, np.nan), where=clients > 0)


def _of_all(run: Outcomes, name: str, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[A, 1 + R] mean over the clients of their accuracy on all images of a set."""
    images, packed = len(counts), getattr(run, name)
    hits = np.zeros((len(run.alphas), images))  # how many clients get an image right
    for chunk in _chunks(run):
        hits += np.unpackbits(packed[:, chunk], axis=2, count=images).sum(1, dtype=np.uint8)
    return hits @ counts / len(run.own) / images  # sums of whole numbers: exact in any order


def _chunks(run: Outcomes) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(run.own), CHUNK)]


def _harmonic(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(values) / (1 / stacked).sum(0), 0.0)
