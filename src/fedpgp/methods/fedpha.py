"""Personal prompts of different lengths beside one shared prompt."""

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
    """p_i [M_i, d] private, of the client's own length, beside p_G [M, d] shared (Fang et al. 2025).

    With z_i, z_o, z_G [C, D] the text features of p_i, of its projection, and of p_G, all of unit length,

        L = CE(z_i) + CE(z_G) + w · 1/(C D) Σ (z_i − z_o)² + w' · 1/C Σ_c max(0, α − ‖z_i,c − z_G,c‖).

    The projection takes out of the vectors of p_i the directions V₁ [d, r₁] in which p_G is largest: of its M singular
    values the first r₁ = ⌊M (1 − ratio)⌋, which must be 1 or more. "complement" leaves all others,
    p_i (I − V₁ V₁ᵀ), as we read the paper; "code" only the other M − r₁ of p_G, as the thin decomposition in the public
    code, so that whatever is orthogonal to p_G goes, too. The two are far apart: of pictoclip's 128 dimensions, with
    M = 16 and ratio 0.8, "complement" takes out 3 and "code" 115. We measured the pull of "code" as a multiple of the
    pull of "complement": 36 to 65 for random prompts; in runs on pictograms (ten clients, random start, learning rates
    0.05 and 0.25) 6 to 8 in the first round, and 3 to 4 in the second to fifth.

    No gradient reaches p_G through the decomposition, where it is unstable; the public code has it.

    Prediction is by p_i alone; a client without one takes p_G. The lengths go round by the client's number. The public
    code draws them from 4 to 32 on CIFAR and has fixed lists for Office31 and Office-Home. If the start is a phrase,
    p_i has its last M_i tokens, behind N(0, 0.02²) where p_i is longer (ours).
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
        description="M_i of clients 0, 1, …, and round again (ours)",
    )
    ratio: float = Field(
        default=0.8,
        ge=1e-6,
        lt=1,
        description="share of p_G's directions that the projection leaves, at most 1 - 1/M (authors' code)",
    )
    projection: Literal["complement", "code"] = Field(
        default="complement", description='leaves "complement" (paper, as we read it) or "code" (public code)'
    )
    margin: float = Field(default=1.0, ge=0, le=2, description="α, distance to be kept from z_G (authors' code)")
    pull: Factor = Field(default=1.0, description="w, weight of the pull to z_o (public code)")
    push: Factor = Field(default=1.0, description="w', weight of the push from z_G (public code)")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        p_G = self.new_context(backbone, rng)
        if not self._taken_out(len(p_G)):
            M, vectors = len(p_G), math.ceil(1 / (1 - self.ratio) - 1e-9)
            most = math.floor(1e4 * (1 - 1 / M)) / 1e4  # rounded down
            remedy = f"Set {self.name}.ratio={most:g} or less, or take" if M > 1 else "Take"
            raise ConfigError(
                f"{self.name}.ratio must be at most 1 - 1/M = {most:g} for a shared prompt of M = {M} vectors, got"
                f" {self.ratio:g}: the projection would take out no direction, and the pull would be 0. {remedy} a"
                f" longer shared prompt (context_length or ctx_init), of {vectors} vectors or more"
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
        """r₁, how many of p_G's directions the projection takes out."""
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
