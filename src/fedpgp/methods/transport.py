"""Entropic optimal transport between the patches of an image and several prompts, and the methods that use it.

Letters: P patches, N prompts, B images, C classes, D feature width.
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
    """The plan T [..., P, N] that carries patches to prompts; similarity: [..., P, N], a problem each.

    T minimises Σ_pn T_pn (1 − similarity_pn) + ε Σ_pn T_pn (log T_pn − 1) among those with Σ_p T_pn = mass / N and

        Σ_n T_pn = 1 / P  where mass is 1 (Cuturi 2013, arXiv 1306.0895),
        Σ_n T_pn ≤ 1 / P  where mass < 1 (FedOTP, Li et al. 2024, arXiv 2403.00041).

    It is T_pn = u_p K_pn v_n with K = exp(similarity / ε), and found by turns from u = 1 (Sinkhorn 1967; with the
    inequality Chizat et al. 2018, arXiv 1607.05816),

        v_n ← (mass / N) / Σ_p u_p K_pn,    u_p ← (1 / P) / Σ_n K_pn v_n,  at most 1 where mass < 1,

    in logarithms, so that no exponential overflows or vanishes. Where mass < 1, before u follows from v, all v are
    multiplied by the number with which the sum of T is the mass again: several times fewer turns lead to the same plan
    (after Séjourné et al. 2022, arXiv 2201.00730).

    Columns are exact. Each problem ends by itself, when no log u_p would move by more than `tolerance` in a plain turn.
    Where mass is 1 that is the largest relative error of a row; where it is less, the largest by which a row misses the
    conditions of the optimum: its excess over 1 / P, or, of a row whose u is below 1, what it lacks of 1 / P, or −log u
    if that is smaller.

    Gradients flow through the turns. A similarity of NaN or ∞ makes some of its problem's plan NaN. Raises
    TrainingError where a problem has not ended after so many `iterations`.
    """
    P, N = similarity.shape[-2:]
    S, highest = similarity / epsilon, math.inf if mass == 1 else 0.0
    log_u = torch.zeros_like(S[..., 0])
    for _ in range(iterations + 1):
        log_v = math.log(mass / N) - torch.logsumexp(S + log_u[..., None], -2)
        full = -math.log(P) - torch.logsumexp(S + log_v[..., None, :], -1)  # log u of rows of 1 / P
        new = full.clamp(max=highest)
        residual = (new - log_u).detach().abs().amax(-1, keepdim=True)
        goes_on = residual > tolerance  # false for NaN
        if not goes_on.any():
            return (S + log_u[..., None] + log_v[..., None, :]).exp()
        if mass < 1:
            new = (full - _log_scale(full, mass)).clamp(max=highest)
        log_u = torch.where(goes_on, new, log_u)
    raise TrainingError(
        f"the optimal transport of {int(goes_on.sum())} of {goes_on.numel()} images and classes has not converged after"
        f" iterations = {iterations}: the largest residual is {float(residual[goes_on].max()):.1e}, tolerance is"
        f" {tolerance:.1e}: raise iterations, or epsilon, or tolerance"
    )


def _log_scale(full: Tensor, mass: float) -> Tensor:
    """log k [..., 1] with which rows min(1 / P, k exp(−full_p) / P) have the sum `mass`. full: [..., P].

    Where the j smallest are below 1 / P, they share what the others leave: k = (mass P − (P − j)) / Σ exp(−full) over
    them. Of all j the right one gives the largest k.
    """
    P = full.shape[-1]
    left = (mass * P - torch.arange(P - 1, -1, -1, dtype=torch.float64)).clamp(min=0).to(full)
    return (left.log() - (-full).sort(-1).values.logcumsumexp(-1)).amax(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransportMethod(PromptMethod, ABC):
    """A method whose logits are what the patches of an image have in common with the prompts that they are carried to.

    With g_p [D] a patch feature and h_nc [D] the text feature of prompt n, both of unit length, and s = exp(logit
    scale), the logit of class c is s Σ_pn T_pn g_p·h_nc. Each class has a plan T of its own, from the same g_p·h_nc,
    and training takes it for a constant. The feature of the whole image is not used.
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
        description="after which a plan that has not converged is an error (ours; public code: 100, which ends it)",
    )
    tolerance: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="relative error of a patch's mass at which a plan ends (ours; public code: a mean over the batch)",
    )

    def carried(self, text: Tensor, images: Tensor, frozen: Frozen, mass: float) -> Tensor:
        """The logits [B, C]. text: [N, C, D]; images: [B, 1 + P, D]; mass: of every plan."""
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
