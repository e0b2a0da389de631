"""The paired bootstrap, against a plain loop and on outcomes whose difference is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpgp.evaluation import bootstrap
from fedpgp.evaluation.bootstrap import Difference, Outcomes, resampled

N, BASE, NOVEL = 3, 60, 40


def packed(base: NDArray[np.bool_], novel: NDArray[np.bool_], own: NDArray[np.bool_]) -> Outcomes:
    """From base [N, n], novel [N, m] and own [N, n]."""
    bits = (np.packbits(images, axis=-1) for images in (base[None], novel[None], own))
    return Outcomes(np.ones(1), *bits, base_images=base.shape[1], novel_images=novel.shape[1])


def outcomes(seed: int, right: float) -> Outcomes:
    """Random outcomes of three clients with 20 own images each."""
    rng = np.random.default_rng(seed)
    own = np.arange(BASE) % N == np.arange(N)[:, None]
    return packed(rng.random((N, BASE)) < right, rng.random((N, NOVEL)) < right, own)


def differences(first: list[Outcomes], second: list[Outcomes]) -> dict[str, Difference]:
    return bootstrap.differences([resampled(run) for run in first], [resampled(run) for run in second])


def accuracies(run: Outcomes) -> dict[str, float]:
    """Plain loops over clients."""
    right, own = run.unpack("base"), run.unpack("own")
    local = 100 * sum(right[i][own[i]].mean() for i in range(N)) / N
    base, novel = (100 * sum(row.mean() for row in run.unpack(name)) / N for name in ("base", "novel"))
    both = 2 / (1 / base + 1 / novel)
    hm = 3 / (1 / local + 1 / base + 1 / novel)
    area = local * both / 100  # of one point
    return {"local": local, "base": base, "novel": novel, "hm": hm, "cm": (local + both) / 2, "area": area}


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(0.2, 0.9), st.floats(0.2, 0.9)), min_size=1, max_size=3))
@settings(max_examples=20)
def test_observed_difference_is_that_of_the_mean_accuracies(runs: list[tuple[int, float, float]]) -> None:
    first = [outcomes(seed, right) for seed, right, _ in runs]
    second = [outcomes(seed + 1000, right) for seed, _, right in runs]
    for name, found in differences(first, second).items():
        expected = np.mean([accuracies(run)[name] for run in first]) - np.mean(
            [accuracies(run)[name] for run in second]
        )
        assert found.mean == pytest.approx(expected)
        assert found.low <= found.high


def test_unpacked_outcomes_are_those_that_were_packed() -> None:
    rng = np.random.default_rng(0)
    base, novel, own = (rng.random((5, n)) < 0.5 for n in (11, 8, 11))
    run = packed(base, novel, own)
    for name, rows in {"base": base, "novel": novel, "own": own}.items():
        assert (run.unpack(name) == rows).all()
        assert (run.unpack(name, slice(1, 3)) == rows[1:3]).all()
    assert run.base.nbytes == 5 * 2


def test_local_of_each_client_is_of_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CHUNK", 2)
    one, other = outcomes(0, 0.6), outcomes(1, 0.6)
    path = Outcomes(
        np.array([0.0, 1.0]),
        *(np.concatenate(pair) for pair in ((one.base, other.base), (one.novel, other.novel))),
        one.own,
        BASE,
        NOVEL,
    )
    own = one.unpack("own")
    for alpha, run in ((0.0, one), (1.0, other)):
        right = run.unpack("base")
        assert path.local(alpha) == pytest.approx([100 * right[i][own[i]].mean() for i in range(N)])


def test_clients_are_looked_at_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [outcomes(0, 0.6)], [outcomes(1, 0.5)]
    whole = differences(first, second)
    monkeypatch.setattr(bootstrap, "CHUNK", 2)
    for name, found in differences(first, second).items():
        assert (found.mean, found.low, found.high) == pytest.approx(
            (whole[name].mean, whole[name].low, whole[name].high)
        )


def test_a_client_that_owns_no_test_image_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CHUNK", 1)
    run = outcomes(0, 0.6)
    right, novel, own = (run.unpack(name) for name in ("base", "novel", "own"))
    own[1] = False
    found = resampled(packed(right, novel, own))["local"]
    assert found[0] == pytest.approx(100 * np.mean([right[i][own[i]].mean() for i in (0, 2)]))
    assert np.isfinite(found).all()


def test_a_method_does_not_differ_from_itself() -> None:
    run = [outcomes(0, 0.5)]
    for found in differences(run, run).values():
        assert (found.mean, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)


def test_a_clear_difference_excludes_zero_in_both_directions() -> None:
    good, bad = [outcomes(0, 0.9)], [outcomes(1, 0.4)]
    assert all(found.excludes_zero and found.low > 20 for found in differences(good, bad).values())
    assert all(found.excludes_zero and found.high < -20 for found in differences(bad, good).values())


def test_interval_has_the_width_of_the_binomial() -> None:
    """One client, independent outcomes: the standard error of a difference of two shares is known."""
    rng = np.random.default_rng(0)
    n, p = 4000, 0.5

    def run() -> Outcomes:
        return packed(rng.random((1, n)) < p, rng.random((1, n)) < p, np.ones((1, n), bool))

    found = differences([run()], [run()])["base"]
    expected = 100 * 2 * 1.96 * np.sqrt(2 * p * (1 - p) / n)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_pairing_narrows_the_interval() -> None:
    """Two methods that differ on 2 of 60 images differ less than independent ones would."""
    run = outcomes(0, 0.5)
    base = run.unpack("base")
    base[:, :2] = ~base[:, :2]
    paired = differences([run], [packed(base, run.unpack("novel"), run.unpack("own"))])["base"]
    unpaired = differences([run], [outcomes(5, 0.5)])["base"]
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_wrong_everywhere_is_zero_and_not_an_error() -> None:
    nothing = packed(np.zeros((N, BASE), bool), np.zeros((N, NOVEL), bool), outcomes(0, 1).unpack("own"))
    assert differences([nothing], [nothing])["hm"].mean == 0


def test_clients_with_one_image_give_finite_intervals() -> None:
    """Many resamples contain none of a client's images."""
    run = packed(np.array([[True, False], [True, True]]), np.array([[True, False]] * 2), np.eye(2, dtype=bool))
    for found in differences([run], [outcomes_of_two()]).values():
        assert np.isfinite([found.mean, found.low, found.high]).all()


def outcomes_of_two() -> Outcomes:
    return packed(np.array([[False, True], [False, True]]), np.array([[True, True]] * 2), np.eye(2, dtype=bool))
