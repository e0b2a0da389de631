"""Personal prompts of different lengths, and one shared prompt."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params, PromptMethod, logits, normal


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedPHA(PromptMethod):
    """A private prompt p_i whose length depends on the client, and a shared prompt p_G (Fang et al. 2025).

    p_i is [M_i, d] and p_G is [M, d]. With z_i, z_o, z_G [C, D] the text features of p_i, of the projection of p_i, and
    of p_G, all of unit length,

        L = CE(z_i) + CE(z_G) + w · 1/(C D) Σ (z_i − z_o)² + w' · 1/C Σ_c max(0, α − ‖z_i,c − z_G,c‖).

    The projection removes from the vectors of p_i the directions V₁ [d, r₁] of the largest singular values of p_G: the
    first r₁ = ⌊M (1 − ratio)⌋ of M, which must be at least 1. With "complement", all other directions remain: p_i (I −
    V₁ V₁ᵀ). This is our reading of the paper. With "code", only the other M − r₁ singular directions of p_G remain, as
    in the public code, which uses the thin decomposition. Everything orthogonal to p_G is then removed, too. The two
    variants differ a lot: with the 128 dimensions of pictoclip, M = 16 and ratio 0.8, "complement" removes 3 dimensions
    and "code" removes 115. We measured the pull term of "code" as a multiple of the pull term of "complement": 36 to 65
    for random prompts; in runs on pictograms (ten clients, random initialization, learning rates 0.05 and 0.25) 6 to 8
    in the first round, and 3 to 4 in the second to fifth.

    No gradient flows to p_G through the decomposition, because it would be unstable. The public code has this gradient.

    Prediction only uses p_i. A client without a private part uses p_G. Client number i has entry i of `lengths`, which
    starts again after its end. The public code draws the lengths between 4 and 32 on CIFAR and has fixed lists for
    Office31 and Office-Home. If the initial context is a phrase, p_i starts from its last M_i tokens; if p_i is longer,
    vectors from N(0, 0.02²) precede them (ours).
    """

    name = "fedpha"
    source = "Fang et al., ICML 2025, PMLR 267:15960-15975"
    year = 2025
    venue = "ICML"
    context_names = ("global", "personal")

    lengths: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(4, 8, 16),
        min_length=1,
        strict=False,
        description="M_i, number of vectors of p_i for clients 0, 1, …; after the last entry, the list repeats (ours)",
    )
    ratio: float = Field(
        default=0.8,
        ge=1e-6,
        lt=1,
        description="Share of p_G's directions that the projection keeps, at most 1 - 1/M (authors' code)",
    )
    projection: Literal["complement", "code"] = Field(
        default="complement",
        description='Directions that the projection keeps: "complement" for all other directions (our reading of the'
        ' paper), or "code" for the other directions of p_G (public code)',
    )
    margin: float = Field(
        default=1.0, ge=0, le=2, description="α, distance from z_G above which z_i is not pushed away (authors' code)"
    )
    pull: Factor = Field(default=1.0, description="w, weight of the pull towards z_o (public code)")
    push: Factor = Field(default=1.0, description="w', weight of the push away from z_G (public code)")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        p_G = self.new_context(backbone, rng)
        if not self._taken_out(len(p_G)):
            M, vectors = len(p_G), math.ceil(1 / (1 - self.ratio) - 1e-9)
            most = math.floor(1e4 * (1 - 1 / M)) / 1e4  # rounded down
            longer = f"a longer shared prompt (context_length or ctx_init), of {vectors} vectors or more"
            raise ConfigError(
                where=f"{self.name}.ratio",
                allowed=f"at most 1 - 1/M = {most:g} for a shared prompt of M = {M} vectors, so that the projection"
                " removes at least one direction",
                got=self.ratio,
                remedy=f"Use --set {self.name}.ratio={most:g} or less, or {longer}" if M > 1 else f"Use {longer}",
            )
        return {"p_G": p_G}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        length = self.lengths[client % len(self.lengths)]
        p = normal(rng, length, backbone.token_width).to(backbone.logit_scale)
        if self.ctx_init != "random":
            phrase = self.new_context(backbone, rng)[-length:]
            p[-len(phrase) :] = phrase
        return {"p": p}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        p, p_G = params.private["p"], params.shared["p_G"]
        return [p, self._projected(p, p_G.detach()), p_G]

    def _taken_out(self, M: int) -> int:
        """Return r₁, the number of p_G's directions that the projection removes."""
        return math.floor(M * (1 - self.ratio) + 1e-9)  # 10 · (1 − 0.8) is 1.9999…

    def _projected(self, p: Tensor, p_G: Tensor) -> Tensor:
        directions = torch.linalg.svd(p_G, full_matrices=False).Vh
        first = self._taken_out(len(directions))
        if self.projection == "code":
            return p @ directions[first:].T @ directions[first:]
        return p - p @ directions[:first].T @ directions[:first]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        z_i, z_o, z_G = text
        distance = torch.linalg.vector_norm(z_i - z_G, dim=-1)
        return {
            **super().loss(params, text, batch, frozen),
            "global": F.cross_entropy(logits(z_G, batch.features, frozen), batch.labels),
            "pull": self.pull * F.mse_loss(z_i, z_o),
            "push": self.push * F.relu(self.margin - distance).mean(),
        }

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {"p": params.shared["p_G"]})

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        z_i, _, z_G = text
        return super().diagnostics(torch.stack([z_G, z_i]), frozen)
