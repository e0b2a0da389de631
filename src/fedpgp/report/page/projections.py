"""Projections of points to two dimensions: principal components, and t-SNE.

Letters: n points, d dimensions. Both are exact and small, because importing scikit-learn takes longer than the
projection of a few hundred points.
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
PERPLEXITY = 15
ITERATIONS = 500
EXAGGERATED = 250  # first iterations, in which all similarities count EXAGGERATION times (van der Maaten and Hinton)
EXAGGERATION = 12
HALVINGS = 40  # steps of the search for the width of a point's neighbourhood


def principal(points: Points) -> Points:
    """Return the first two principal components [n, 2] of points [n, d]; the largest entry of each axis is positive."""
    centred = points - points.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1, keepdims=True), axis=1))
    return centred @ (signs * axes).T


def tsne(points: Points, start: Points) -> Points:
    """Return the t-SNE [n, 2] of points [n, d], see van der Maaten and Hinton 2008.

    Parameters
    ----------
    points
        At least four points.
    start
        Places [n, 2] before the first step.
    """
    count = len(points)
    similar = similarities(points, min(PERPLEXITY, (count - 1) / 3))
    places = start / start[:, 0].std() * 1e-4
    rate = max(count / EXAGGERATION / 4, 50)
    for iteration in range(ITERATIONS):
        early = iteration < EXAGGERATED
        if iteration in (0, EXAGGERATED):
            step, gains = np.zeros_like(places), np.ones_like(places)
        close = 1 / (1 + _squares(places))
        np.fill_diagonal(close, 0)
        pull = ((EXAGGERATION if early else 1) * similar - close / close.sum()) * close
        gradient = 4 * (pull.sum(1)[:, None] * places - pull @ places)
        gains = np.maximum(np.where(gradient * step < 0, gains + 0.2, gains * 0.8), 0.01)
        step = (0.5 if early else 0.8) * step - rate * gains * gradient
        places = places + step
    return places


def similarities(points: Points, perplexity: float) -> Points:
    """Return the symmetric similarities [n, n] of points, which sum to 1, so that each has this perplexity."""
    squares = _squares(points)
    np.fill_diagonal(squares, np.inf)
    squares -= squares.min(1, keepdims=True)
    low, high = np.zeros(len(points)), np.full(len(points), np.inf)
    precision = 1 / np.median(squares[np.isfinite(squares)])
    precisions = np.full(len(points), precision)
    for _ in range(HALVINGS):
        weights = np.exp(-squares * precisions[:, None])
        total = weights.sum(1)
        entropy = np.log(total) + precisions * (weights * np.where(weights > 0, squares, 0)).sum(1) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, precisions, low), np.where(wide, high, precisions)
        precisions = np.where(np.isinf(high), 2 * precisions, (low + np.where(np.isinf(high), 0, high)) / 2)
    weights = np.exp(-squares * precisions[:, None])
    weights /= weights.sum(1, keepdims=True)
    return (weights + weights.T) / (2 * len(points))


def _squares(points: Points) -> Points:
    """Return the squared distances [n, n] of points."""
    norms = (points**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0)
