"""Is the difference of two methods more than the luck of the test images? Paired bootstrap over test images.

Letters: R resamples, N clients, A points of a path, n test images of base classes, m of novel ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedpgp.metrics import area

METRICS = ("local", "base", "novel", "hm", "cm", "area")
RESAMPLES = 2000
SEED = 0
CHUNK = 64  # clients looked at together, so that memory does not grow with their number

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
    base_counts, novel_counts = _both_counts(run.base_images, run.novel_images)
    local = _local(run, base_counts)
    tested = {"base": _of_all(run, "base", base_counts)}
    if run.novel_images:
        tested["novel"] = _of_all(run, "novel", novel_counts)
    both = _harmonic(*tested.values())
    (chosen,) = np.flatnonzero(run.alphas == alpha)
    own = {"local": local[chosen], **{name: values[chosen] for name, values in tested.items()}}
    found = {
        **own,
        "hm": _harmonic(*own.values()),
        "cm": (local[chosen] + both[chosen]) / 2,
        "area": area(100 * local, 100 * both) / 100,
    }
    return {name: 100 * found[name] for name in METRICS if name in found}


def differences(first: Sequence[Figures], second: Sequence[Figures]) -> dict[str, Difference]:
    """First minus second in every metric that both have; one entry of each sequence per seed."""
    drawn = {
        name: np.mean([one[name] for one in first], axis=0) - np.mean([other[name] for other in second], axis=0)
        for name in METRICS
        if name in first[0] and name in second[0]
    }
    return {
        name: Difference(float(values[0]), *map(float, np.quantile(values[1:], [0.025, 0.975])))
        for name, values in drawn.items()
    }


@lru_cache(maxsize=2)
def _both_counts(base_images: int, novel_images: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`_counts` of both test sets, drawn once for all runs of a task: the base images' first."""
    rng = np.random.default_rng(SEED)
    return _counts(rng, base_images), _counts(rng, novel_images) if novel_images else np.zeros((0, 0))


def _counts(rng: np.random.Generator, images: int) -> NDArray[np.float64]:
    """[1 + R, images] how often every image counts: once, and in each resample."""
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.concatenate([np.ones((1, images)), drawn])


def _local(run: Outcomes, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[A, 1 + R] mean over the clients of their accuracy on the images of their own classes."""
    whole = counts.astype(np.float32)  # sums of so few images are exact in it, and it takes half the time
    total, clients = np.zeros((len(run.alphas), len(counts))), np.zeros(len(counts))
    for chunk in _chunks(run):
        mine = run.unpack("own", chunk)
        own = (whole @ mine.T.astype(np.float32)).astype(np.float64)  # [1 + R, clients] images of the client's own
        clients += (own > 0).sum(1)
        for point in range(len(run.alphas)):
            hit = run.unpack("base", chunk, point) & mine
            right = (whole @ hit.T.astype(np.float32)).astype(np.float64)
            # A client with so few test images that a resample holds none of them does not count in it.
            total[point] += np.divide(right, own, out=np.zeros_like(own), where=own > 0).sum(1)
    return np.divide(total, clients, out=np.full_like(total, np.nan), where=clients > 0)


def _of_all(run: Outcomes, name: str, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[A, 1 + R] mean over the clients of their accuracy on all images of a set."""
    hits = np.stack(
        [np.sum([run.unpack(name, chunk, p).sum(0) for chunk in _chunks(run)], axis=0) for p in range(len(run.alphas))]
    )  # [A, n] how many clients get an image right
    right = counts @ hits.T.astype(np.float64)  # sums of whole numbers: exact in any order
    return np.ascontiguousarray((right / len(run.own) / counts.sum(1, keepdims=True)).T)


def _chunks(run: Outcomes) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(run.own), CHUNK)]


def _harmonic(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(values) / (1 / stacked).sum(0), 0.0)
