"""Is the difference of two methods more than the luck of the test images? Paired bootstrap over test images.

Letters: R resamples, S seeds, N clients, n test images of base classes, m of novel ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("local", "base", "novel", "hm", "cm")
RESAMPLES = 2000
SEED = 0
CHUNK = 64  # clients looked at together, so that memory does not grow with their number


@dataclass(frozen=True)
class Outcomes:
    """Which test images the clients of one run got right, eight images in a byte (np.packbits).

    base: [N, ⌈n/8⌉] and novel: [N, ⌈m/8⌉]; own: [N, ⌈n/8⌉], which base images are of the client's own classes.
    """

    base: NDArray[np.uint8]
    novel: NDArray[np.uint8]
    own: NDArray[np.uint8]
    base_images: int
    novel_images: int

    def unpack(self, name: str, clients: slice = slice(None)) -> NDArray[np.bool_]:
        """[clients, images] of "base", "novel" or "own" for some of the clients."""
        count = self.novel_images if name == "novel" else self.base_images
        return np.unpackbits(getattr(self, name)[clients], axis=1, count=count).astype(np.bool_)


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


def differences(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> dict[str, Difference]:
    """First minus second in every metric; one entry of each sequence per seed.

    The same resampled images count for both methods, all clients and all seeds, so that only the images' luck is
    judged; how much the seeds differ is the standard deviation's to say.
    """
    rng = np.random.default_rng(SEED)
    n, m = first[0].base_images, first[0].novel_images
    once = np.ones((1, n)), np.ones((1, m))
    resampled = (
        rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float),
        rng.multinomial(m, np.full(m, 1 / m), size=RESAMPLES).astype(float),
    )
    observed = _subtract(_metrics(first, *once), _metrics(second, *once))
    drawn = _subtract(_metrics(first, *resampled), _metrics(second, *resampled))
    return {
        name: Difference(float(observed[name][0]), *map(float, np.quantile(drawn[name], [0.025, 0.975])))
        for name in METRICS
    }


def _metrics(
    runs: Sequence[Outcomes], base_counts: NDArray[np.float64], novel_counts: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """[R] of every metric, in percent: means over clients, then HM and CM, then means over seeds."""
    per_seed = []
    for run in runs:
        local = _local(run, base_counts)
        base = base_counts @ _share_of_clients(run, "base") / base_counts.sum(1)
        novel = novel_counts @ _share_of_clients(run, "novel") / novel_counts.sum(1)
        harmonic = _harmonic(base, novel)
        per_seed.append([local, base, novel, _harmonic(local, base, novel), (local + harmonic) / 2])
    return dict(zip(METRICS, 100 * np.mean(per_seed, axis=0), strict=True))


def _local(run: Outcomes, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] mean over the clients of their accuracy on the images of their own classes."""
    total, clients = np.zeros(len(counts)), np.zeros(len(counts))
    for chunk in _chunks(run):
        mine = run.unpack("own", chunk)
        own = counts @ mine.T  # [R, clients] images of the client's own classes
        right = counts @ (run.unpack("base", chunk) & mine).T
        # A client with so few test images that a resample holds none of them does not count in it.
        total += np.divide(right, own, out=np.zeros_like(own), where=own > 0).sum(1)
        clients += (own > 0).sum(1)
    return np.divide(total, clients, out=np.full_like(total, np.nan), where=clients > 0)


def _share_of_clients(run: Outcomes, name: str) -> NDArray[np.float64]:
    """[n] for each image, the share of the clients that get it right."""
    return np.sum([run.unpack(name, chunk).sum(0) for chunk in _chunks(run)], axis=0) / len(run.base)


def _chunks(run: Outcomes) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(run.base), CHUNK)]


def _harmonic(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(values) / (1 / stacked).sum(0), 0.0)


def _subtract(
    first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    return {name: first[name] - second[name] for name in METRICS}
