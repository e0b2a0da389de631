"""A global prompt and a low-rank personal prompt, trained with differential privacy."""

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

LARGE, TARGET = 10.0, 8.0  # if ε > LARGE, a warning before the run names the noise that gives ε = TARGET


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DPFPL(PromptMethod):
    """A shared prompt p_G plus a private prompt p_L, both trained with noisy gradients (Tran et al. 2025).

    The client's prompt is p_i = p_G + p_L, with p_G and p_L [M, d]. Each step decomposes p_L = u v + r with orthonormal
    u [M, k] and v [k, d]. One power iteration from a random matrix V gives u = GS(p_L V) and v = GS(p_Lᵀ u)ᵀ, where GS
    is the Gram–Schmidt process. With G_b the gradient of image b of a batch of B images,

        g_G = 1/B (Σ_b clip(G_b) + z C N(0, I)),      g_u, g_v = 1/B (Σ_b clip(G_b vᵀ, uᵀ G_b) + z C N(0, I)).

    Here clip scales a vector to a norm of at most C, and treats g_u and g_v as one vector. The optimizer follows g_G
    for p_G. For p_L it follows the projection on the tangent space of the matrices of rank k: g_u v + u g_v − u uᵀ g_u
    v.

    Differences from the paper: the paper adds the noise of p_G on the server after every batch. A round here has many
    steps, so each client adds the noise itself. This also protects the client from the server, but adds more noise to
    the average. Differences from the public code: it clips the mean gradient of a batch instead of the gradient of each
    image, clips g_u and g_v separately, adds the last term of the projection instead of subtracting it (the result is
    then not a projection), and divides g_u and g_v by 10.

    The noise is drawn from the run's seed, like all random numbers here. Therefore ε only holds against attackers who
    do not know the seed. The server of a simulation knows it.

    `privacy_spent` only covers the released prompts. The losses and accuracies that a run records are not protected,
    nor is the number of images in an upload.

    Relation of z to ε: the public code takes ε and computes z = √(R ln(1/δ)) / ε for R rounds of one batch. The
    authors' ε = 0.4 therefore means z = 85 for 100 rounds and δ = 1e-5. `privacy_spent` counts two mechanisms in each
    epoch and gives ε = 0.59 for z = 85 and 100 epochs. Our default z = 1 gives ε = 92 after 50 epochs (25 rounds of 2),
    which does not protect anyone; ε = 8 needs z = 6.0 there. If ε is above 10, a warning is printed before the run
    starts.
    """

    name = "dp-fpl"
    source = "Tran et al., ICLR 2025, arXiv 2501.13904"
    year = 2025
    venue = "ICLR"
    per_example = True

    rank: Count = Field(default=8, description="k, rank of the gradient of the personal part p_L (public code)")
    clip: float = Field(
        default=10.0, gt=0, le=1e9, description="C, upper bound of the norm of an image's gradient (public code)"
    )
    noise_multiplier: Factor = Field(
        default=1.0,
        description="z, standard deviation of the noise divided by C; 0: no privacy. After 50 epochs, 1 gives ε = 92,"
        " which does not protect anyone, and 6 gives ε = 8 (ours; the authors' ε = 0.4 in 100 rounds: 85)",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ for which ε is recorded (public code)")
    private_learning_rate: LearningRate | None = Field(
        default=None, description="Learning rate of p_L; if unset, learning_rate (paper)"
    )

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.private_learning_rate or self.learning_rate}

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        self.privacy_spent(1)  # find a missing package before training instead of after the first round
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
        """Return the noisy means over images of `parts` [B, …], which are clipped as one vector for each image."""
        norms = torch.cat([part.flatten(1) for part in parts], dim=1).norm(dim=1)
        scale = (self.clip / norms).clamp(max=1)[:, None, None]  # a norm of 0 gives infinity, which becomes 1
        deviation = self.noise_multiplier * self.clip
        return [
            ((scale * part).sum(0) + deviation * torch.randn(part.shape[1:], generator=rng).to(part)) / len(part)
            for part in parts
        ]

    def path(self, params: Params, alpha: float) -> Params:
        """Return the model with the prompt p_G + α p_L."""
        return replace(params, private={"p_L": alpha * params.private["p_L"]})

    def privacy_spent(self, epochs: int) -> dict[str, float]:
        """Return ε for `delta` after `epochs` epochs. It is exact, and does not use amplification by subsampling.

        Neighbouring datasets differ in one image of a client: in one of them, its place in the batch is empty. In each
        epoch an image is in exactly one batch, where two Gaussian mechanisms with sensitivity C/B and noise z C/B use
        it, for p_G and for p_L. All epochs together equal one mechanism with the noise multiplier z / √(2 · epochs).
        """
        if not self.noise_multiplier:
            return {}  # ε is infinite
        try:
            from dp_accounting import get_epsilon_gaussian
        except ImportError as error:
            raise ConfigError(
                "the package dp-accounting, which computes ε, is not installed",
                where=f"[{self.name}]",
                remedy='Install it with `pip install "fedpgp[privacy]"`, or train without noise with'
                f" --set {self.name}.noise_multiplier=0",
            ) from error
        return {"epsilon": float(get_epsilon_gaussian(self.noise_multiplier / math.sqrt(2 * epochs), self.delta))}

    def assumptions(self, epochs: int) -> list[str]:
        """Return a warning for a run of `epochs` local epochs, if its ε is large."""
        epsilon = self.privacy_spent(epochs).get("epsilon", 0)
        if epsilon <= LARGE:
            return []
        from dp_accounting import get_sigma_gaussian

        enough = get_sigma_gaussian(TARGET, self.delta) * math.sqrt(2 * epochs)
        return [
            f"{self.name}.noise_multiplier = {self.noise_multiplier:g} gives ε = {epsilon:.3g} for a client's image"
            f" (δ = {self.delta:g}, {epochs} local epochs). This does not protect anyone. For ε = {TARGET:g}, use"
            f" --set {self.name}.noise_multiplier={enough:.3g}"
        ]


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram–Schmidt of the columns [m, k], k ≤ m. A column that depends on earlier columns becomes an arbitrary one."""
    q, r = torch.linalg.qr(columns)
    return torch.where(r.diagonal() < 0, -q, q)  # Gram–Schmidt's signs
