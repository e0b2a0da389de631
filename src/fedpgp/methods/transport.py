"""Entropic optimal transport between the patches of an image and several prompts, and a base class of methods.

Letters in shapes: P patches, N prompts, B images, C classes, D feature width.
"""

import math
from abc import ABC

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.errors import TrainingError
from fedpgp.methods.base import STRICT, Frozen, PromptMethod, Steps


def transport(similarity: Tensor, *, epsilon: float, mass: float, iterations: int, tolerance: float) -> Tensor:
    """Return the optimal plans T [..., P, N] that transport patches to prompts.

    T minimises Σ_pn T_pn (1 − similarity_pn) + ε Σ_pn T_pn (log T_pn − 1) over the plans with Σ_p T_pn = mass / N and

        Σ_n T_pn = 1 / P  if mass = 1 (Cuturi 2013, arXiv 1306.0895),
        Σ_n T_pn ≤ 1 / P  if mass < 1 (FedOTP, Li et al. 2024, arXiv 2403.00041).

    The solution is T_pn = u_p K_pn v_n with K = exp(similarity / ε). It is computed by iterations that start from u = 1
    (Sinkhorn 1967; with the inequality Chizat et al. 2018, arXiv 1607.05816),

        v_n ← (mass / N) / Σ_p u_p K_pn,    u_p ← (1 / P) / Σ_n K_pn v_n,  at most 1 if mass < 1.

    They use logarithms, so that no exponential overflows or underflows. If mass < 1, each iteration multiplies all v by
    a factor that makes T sum to the mass again, before it computes u from v. This gives the same plan with several
    times fewer iterations (after Séjourné et al. 2022, arXiv 2201.00730).

    The column sums are exact. Each problem ends separately, when an iteration without this factor would change no log
    u_p by more than `tolerance`. If mass = 1, this change is the largest relative error of a row sum. If mass < 1, it
    is the largest violation of the conditions of the optimum by a row: how much its sum exceeds 1 / P, or, if its u is
    below 1, how much its sum is below 1 / P, or −log u if that is smaller.

    Parameters
    ----------
    similarity
        Similarities [..., P, N], one problem for each index of the leading dimensions. Gradients flow to them through
        the iterations. If one is NaN or ∞, the plan of its problem has NaN.
    epsilon
        ε, the weight of the entropy.
    mass
        The sum of each plan, at most 1.
    iterations
        Largest number of iterations.
    tolerance
        Largest residual of a plan that counts as converged.

    Raises
    ------
    TrainingError
        A problem has not converged after `iterations` iterations.
    """
    P, N = similarity.shape[-2:]
    S, highest = similarity / epsilon, math.inf if mass == 1 else 0.0
    log_u = torch.zeros_like(S[..., 0])
    for _ in range(iterations + 1):
        log_v = math.log(mass / N) - torch.logsumexp(S + log_u[..., None], -2)
        full = -math.log(P) - torch.logsumexp(S + log_v[..., None, :], -1)  # log u of rows with the sum 1 / P
        new = full.clamp(max=highest)
        residual = (new - log_u).detach().abs().amax(-1, keepdim=True)
        continues = residual > tolerance  # false for NaN
        if not continues.any():
            return (S + log_u[..., None] + log_v[..., None, :]).exp()
        if mass < 1:
            new = (full - _log_scale(full, mass)).clamp(max=highest)
        log_u = torch.where(continues, new, log_u)
    raise TrainingError(
        f"the optimal transport of {int(continues.sum())} of {continues.numel()} pairs of an image and a class has not"
        f" converged after {iterations} iterations: the largest residual is {float(residual[continues].max()):.1e}, but"
        f" the tolerance is {tolerance:.1e}",
        got=iterations,
        remedy="Raise iterations, epsilon or tolerance in the section of the method",
    )


def _log_scale(full: Tensor, mass: float) -> Tensor:
    """Return log k [..., 1] for which the rows min(1 / P, k exp(−full_p) / P) sum to `mass`. full: [..., P].

    If the j smallest rows are below 1 / P, their sum is the mass that the other rows leave. This gives
    k = (mass P − (P − j)) / Σ exp(−full) over these j rows. The correct j is the one with the largest k.
    """
    P = full.shape[-1]
    left = (mass * P - torch.arange(P - 1, -1, -1, dtype=torch.float64)).clamp(min=0).to(full)
    return (left.log() - (-full).sort(-1).values.logcumsumexp(-1)).amax(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransportMethod(PromptMethod, ABC):
    """A method whose logits compare the patches of an image with several prompts by optimal transport.

    With g_p [D] the feature of patch p and h_nc [D] the text feature of class c with prompt n, both of unit length, and
    s = exp(logit scale), the logit of class c is s Σ_pn T_pn g_p·h_nc. Each class has its own plan T, computed from the
    same g_p·h_nc. Training treats the plan as a constant. The feature of the whole image is not used.
    """

    reads = ("text", "patches")

    epsilon: float = Field(
        default=0.1,
        gt=0,
        le=1e3,
        description="ε, weight of the plan's entropy (public code; FedOTP's few-shot script: 0.01)",
    )
    iterations: Steps = Field(
        default=1000,
        description="Largest number of iterations; a plan that has not converged then is an error (ours; public code:"
        " stops after 100 without an error)",
    )
    tolerance: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="Relative error of a patch's mass below which a plan has converged (ours; public code: a mean over"
        " the batch)",
    )

    def carried(self, text: Tensor, images: Tensor, frozen: Frozen, mass: float) -> Tensor:
        """Return the logits [B, C].

        Parameters
        ----------
        text
            Text features [N, C, D].
        images
            Image features [B, 1 + P, D]; the first one, of the whole image, is not used.
        frozen
            Constants of the C classes.
        mass
            The sum of each plan.
        """
        N, C, _ = text.shape
        products = images[:, 1:] @ text.flatten(0, 1).T
        similarity = products.unflatten(-1, (N, C)).permute(0, 3, 1, 2)
        plan = transport(
            similarity.detach(),
            epsilon=self.epsilon,
            mass=mass,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        return frozen.logit_scale.exp() * (plan * similarity).sum((-2, -1))
