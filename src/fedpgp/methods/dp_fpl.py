"""A global and a low-rank personal prompt, trained under differential privacy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Count, Factor, Frozen, LearningRate, Params, PromptMethod, normal

LARGE, TARGET = 10.0, 8.0  # before a run with a larger ε than the first, a warning names the noise for the second


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DPFPL(PromptMethod):
    """p_i = p_G + p_L: p_G [M, d] shared, p_L [M, d] private, both from noised gradients (Tran et al. 2025).

    Each step writes p_L = u v + r with orthonormal u [M, k] and v [k, d], one power iteration from random numbers V:
    u = GS(p_L V), v = GS(p_Lᵀ u)ᵀ. With G_b the gradient of image b of B,

        g_G = 1/B (Σ_b clip(G_b) + z C N(0, I)),      g_u, g_v = 1/B (Σ_b clip(G_b vᵀ, uᵀ G_b) + z C N(0, I)),

    where clip scales to a norm of C at most and takes g_u and g_v for one vector. The optimizer follows g_G in p_G, and
    in p_L the projection on the tangent space of the matrices of rank k: g_u v + u g_v − u uᵀ g_u v.

    Where we differ: the paper adds the noise of p_G on the server after every batch. A round here has many steps, so
    each client adds it itself, which also protects it from the server, at the price of more noise in the average. The
    public code clips the mean gradient of a batch rather than every image's, clips g_u and g_v apart, has a plus in the
    place of the minus, where it is no projection, and divides g_u and g_v by 10.

    The noise is drawn from the run's seed, as everything here: ε holds against those who do not know the seed, and a
    simulation's server does.

    `privacy_spent` counts the released prompts alone: what a run records, losses and accuracies, is not protected, nor
    is an upload's number of images.

    How z relates to ε: the public code takes ε and computes z = √(R ln(1/δ)) / ε for R rounds of one batch, so the
    authors' ε = 0.4 is z = 85 for 100 rounds and δ = 1e-5. `privacy_spent` counts two mechanisms in each epoch, and has
    ε = 0.59 for z = 85 and 100 epochs. Our default z = 1 has ε = 92 after 50 epochs (25 rounds of 2), which protects
    nobody; ε = 8 needs z = 6.0 there. If ε is above 10, a run says so before it starts.
    """

    name = "dp-fpl"
    source = "Tran et al., ICLR 2025, arXiv 2501.13904"
    year = 2025
    venue = "ICLR"
    per_example = True

    rank: Count = Field(default=8, description="k, of the personal part's gradient (public code)")
    clip: float = Field(default=10.0, gt=0, le=1e9, description="C, largest norm of an image's gradient (public code)")
    noise_multiplier: Factor = Field(
        default=1.0,
        description="z, standard deviation of the noise over C; 0: no privacy. After 50 epochs 1 has ε = 92, which"
        " protects nobody, and 6 has ε = 8 (ours; the authors' ε = 0.4 in 100 rounds: 85)",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ at which ε is recorded (public code)")
    private_learning_rate: LearningRate | None = Field(default=None, description="of p_L; unset: learning_rate (paper)")

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.private_learning_rate or self.learning_rate}

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        self.privacy_spent(1)  # a missing package is found before training rather than after its first round
        return {"p_G": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        self.check_rank("rank", self.rank, backbone)
        return {"p_L": normal(rng, self.vectors(backbone), backbone.token_width).to(backbone.logit_scale)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [params.shared["p_G"] + params.private["p_L"]]

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        p_L, of_images = params.private["p_L"], gradients["task"]
        V = torch.randn(p_L.shape[1], self.rank, generator=rng).to(p_L)
        u = _orthonormal(p_L @ V)
        v = _orthonormal(p_L.T @ u).T
        (g_G,) = self._private_means([of_images["p_G"]], rng)
        g_u, g_v = self._private_means([of_images["p_L"] @ v.T, u.T @ of_images["p_L"]], rng)
        return {"p_G": g_G, "p_L": g_u @ v + u @ (g_v - u.T @ g_u @ v)}

    def _private_means(self, parts: Sequence[Tensor], rng: torch.Generator) -> list[Tensor]:
        """The noised means over images of parts [B, …] that are clipped together."""
        norms = torch.cat([part.flatten(1) for part in parts], dim=1).norm(dim=1)
        scale = (self.clip / norms).clamp(max=1)[:, None, None]  # of a zero, infinite before it is 1
        deviation = self.noise_multiplier * self.clip
        return [
            ((scale * part).sum(0) + deviation * torch.randn(part.shape[1:], generator=rng).to(part)) / len(part)
            for part in parts
        ]

    def path(self, params: Params, alpha: float) -> Params:
        """p_G + α p_L"""
        return replace(params, private={"p_L": alpha * params.private["p_L"]})

    def privacy_spent(self, epochs: int) -> dict[str, float]:
        """ε at `delta`, of one client's image against an empty place in its batches; exact, and without subsampling.

        In each epoch an image is in one batch, whatever the order: two Gaussian mechanisms of sensitivity C/B and noise
        z C/B, for p_G and p_L. All of them are one, with a noise multiplier of z / √(2 · epochs).
        """
        if not self.noise_multiplier:
            return {}  # ε is infinite
        try:
            from dp_accounting import get_epsilon_gaussian
        except ImportError as error:
            raise ConfigError(
                f'[{self.name}] counts ε with dp-accounting, which is missing: pip install "fedpgp[privacy]";'
                " noise_multiplier = 0 needs none"
            ) from error
        return {"epsilon": float(get_epsilon_gaussian(self.noise_multiplier / math.sqrt(2 * epochs), self.delta))}

    def assumptions(self, epochs: int) -> list[str]:
        """What a person should know before a run of so many local epochs: a warning if its ε is large."""
        epsilon = self.privacy_spent(epochs).get("epsilon", 0)
        if epsilon <= LARGE:
            return []
        from dp_accounting import get_sigma_gaussian

        enough = get_sigma_gaussian(TARGET, self.delta) * math.sqrt(2 * epochs)
        return [
            f"with {self.name}.noise_multiplier = {self.noise_multiplier:g} a client's image has ε = {epsilon:.3g} at"
            f" δ = {self.delta:g} after {epochs} local epochs. ε = {epsilon:.3g} protects nobody: set"
            f" {self.name}.noise_multiplier={enough:.3g} for ε = {TARGET:g}"
        ]


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram–Schmidt of the columns [m, k], k ≤ m; any orthonormal ones in the place of those that depend on others."""
    q, r = torch.linalg.qr(columns)
    return torch.where(r.diagonal() < 0, -q, q)  # Gram–Schmidt's signs
