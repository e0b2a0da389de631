"""Projections to two dimensions, against scikit-learn."""

import numpy as np
import pytest

from fedpgp.report.page.projections import PERPLEXITY, principal, similarities, tsne


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Fifty groups of four close points."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(50, 1, 30)) + 0.3 * rng.normal(size=(50, 4, 30))).reshape(200, 30)


def test_principal_components_have_the_largest_variance_and_fixed_signs(points):
    found, centred = principal(points), points - points.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    assert (found**2).sum(0) == pytest.approx(variances[::-1][:2])
    assert np.abs(found) == pytest.approx(np.abs(centred @ axes[:, ::-1][:, :2]))
    # The order of the dimensions does not turn an axis around.
    assert principal(points[:, ::-1]) == pytest.approx(found), (
        "the order of the dimensions does not turn an axis around"
    )


def test_similarities_sum_to_one_and_each_point_has_the_perplexity():
    line = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    found = similarities(line, 2.0)
    assert found.sum() == pytest.approx(1) and found == pytest.approx(found.T)
    assert found[0, 1] > found[0, 3] and not np.diag(found).any()


@pytest.mark.slow  # scikit-learn is imported
def test_tsne_agrees_with_scikit_learn(points):
    from scipy.spatial.distance import pdist, squareform
    from sklearn.manifold import TSNE
    from sklearn.manifold._t_sne import _joint_probabilities

    expected = squareform(_joint_probabilities(squareform(pdist(points) ** 2).astype(np.float32), PERPLEXITY, 0))
    assert similarities(points, PERPLEXITY) == pytest.approx(expected, abs=1e-7)
    start = principal(points)
    other = TSNE(2, perplexity=PERPLEXITY, init=(start / start[:, 0].std() * 1e-4).astype(np.float32), max_iter=500)

    def divergence(places: np.ndarray) -> float:
        close = squareform(1 / (1 + pdist(places) ** 2))
        above = expected > 0
        return float((expected[above] * np.log(expected[above] / (close / close.sum())[above])).sum())

    assert divergence(tsne(points, start)) < 1.25 * divergence(other.fit_transform(points).astype(float))
