"""Is the difference of two methods more than the luck of the test images? Paired bootstrap over test images.

Letters: R resamples, S seeds, N clients, n test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("local", "base", "novel", "hm", "cm")
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Outcomes:
    """Which test images the clients of one run got right.

    base: [N, n] and novel: [N, m]; own: [N, n], which base images are of the client's own classes.
    """

    base: NDArray[np.bool_]
    novel: NDArray[np.bool_]
    own: NDArray[np.bool_]


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
    n, m = first[0].base.shape[1], first[0].novel.shape[1]
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
        own = base_counts @ run.own.T  # [R, N] images of the client's own classes
        right = base_counts @ (run.base & run.own).T
        # A client with so few test images that a resample holds none of them does not count in it.
        local = np.nanmean(np.divide(right, own, out=np.full_like(own, np.nan), where=own > 0), axis=1)
        base = (base_counts @ run.base.T).mean(1) / base_counts.sum(1)
        novel = (novel_counts @ run.novel.T).mean(1) / novel_counts.sum(1)
        harmonic = _harmonic(base, novel)
        per_seed.append([local, base, novel, _harmonic(local, base, novel), (local + harmonic) / 2])
    return dict(zip(METRICS, 100 * np.mean(per_seed, axis=0), strict=True))


def _harmonic(*values: NDArray[np.float64]) -> NDArray[np.float64]:
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(values) / (1 / stacked).sum(0), 0.0)


def _subtract(
    first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    return {name: first[name] - second[name] for name in METRICS}
