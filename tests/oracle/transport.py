"""Entropic optimal transport of one image and one class, with Python's numbers."""

import math

import torch


def plan(similarity, epsilon, mass, tolerance):
    """T, as P lists of N numbers: columns sum to mass / N, and rows to 1 / P, or at most 1 / P if mass < 1.

    similarity: P lists of N numbers. T is found by scaling. If mass < 1, each iteration corrects the sum of T by a
    factor, which is found by bisection. The loop ends when an iteration without this factor would multiply each u_p by
    a factor between exp(−tolerance) and exp(tolerance).
    """
    P, N = len(similarity), len(similarity[0])
    K = [[math.exp(-(1 - similarity[p][n]) / epsilon) for n in range(N)] for p in range(P)]
    u = [1.0] * P
    for _ in range(100_000):
        v = [mass / N / sum(K[p][n] * u[p] for p in range(P)) for n in range(N)]
        rows = [sum(K[p][n] * v[n] for n in range(N)) for p in range(P)]

        def scaling(k, rows=rows):
            found = [1 / P / (k * row) for row in rows]
            return [min(1.0, value) for value in found] if mass < 1 else found

        if max(abs(math.log(scaling(1)[p] / u[p])) for p in range(P)) <= tolerance:
            return [[u[p] * K[p][n] * v[n] for n in range(N)] for p in range(P)]
        low, high = 0.0, 1.0
        if mass < 1:
            while sum(min(1 / P, high * row) for row in rows) < mass:
                high *= 2
            while low < (low + high) / 2 < high:
                k = (low + high) / 2
                low, high = (k, high) if sum(min(1 / P, k * row) for row in rows) < mass else (low, k)
        u = scaling(high)
    raise AssertionError("the plan does not converge")


def published(similarity, epsilon, mass, turns):
    """The same as in FedOTP's public code: both scalings start from 1, u first, with a fixed number of iterations."""
    P, N = len(similarity), len(similarity[0])
    K = [[math.exp(-(1 - similarity[p][n]) / epsilon) for n in range(N)] for p in range(P)]
    v = [1.0] * N
    for _ in range(turns):
        u = [min(1.0, 1 / P / sum(K[p][n] * v[n] for n in range(N))) for p in range(P)]
        v = [mass / N / sum(K[p][n] * u[p] for p in range(P)) for n in range(N)]
    return [[u[p] * K[p][n] * v[n] for n in range(N)] for p in range(P)]


def carried(patches, features, epsilon, mass, tolerance):
    """Σ_pn T_pn g_p·h_n with T constant. patches: g [P, D]; features: h [N, D]."""
    similarity = patches @ features.T
    T = torch.tensor(plan(similarity.tolist(), epsilon, mass, tolerance), dtype=similarity.dtype)
    return (T * similarity).sum()
