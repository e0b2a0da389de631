"""Entropic optimal transport of one image and one class, by the scaling algorithm on Python's numbers."""

import math

import torch


def plan(similarity, epsilon, mass, tolerance):
    """T, P lists of N numbers: columns mass / N, rows 1 / P, or at most that where mass < 1.

    similarity: P lists of N numbers. It ends when no u_p is multiplied by more than exp(±tolerance).
    """
    P, N = len(similarity), len(similarity[0])
    K = [[math.exp(-(1 - similarity[p][n]) / epsilon) for n in range(N)] for p in range(P)]
    u = [1.0] * P
    for _ in range(100_000):
        v = [mass / N / sum(K[p][n] * u[p] for p in range(P)) for n in range(N)]
        new = [1 / P / sum(K[p][n] * v[n] for n in range(N)) for p in range(P)]
        if mass < 1:
            new = [min(1.0, value) for value in new]
        if max(abs(math.log(new[p] / u[p])) for p in range(P)) <= tolerance:
            return [[u[p] * K[p][n] * v[n] for n in range(N)] for p in range(P)]
        u = new
    raise AssertionError("the plan does not converge")


def carried(patches, features, epsilon, mass, tolerance):
    """Σ_pn T_pn g_p·h_n with T constant. patches: g [P, D]; features: h [N, D]."""
    similarity = patches @ features.T
    T = torch.tensor(plan(similarity.tolist(), epsilon, mass, tolerance), dtype=similarity.dtype)
    return (T * similarity).sum()
