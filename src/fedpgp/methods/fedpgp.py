"""FedPGP: a global prompt held close to CLIP, and a low-rank personal part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import (
    STRICT,
    TEMPLATE,
    Batch,
    Frozen,
    Params,
    PromptMethod,
    logits,
    mean_cosine,
    normal,
)

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedPGP(PromptMethod):
    """p_i = p_G + U V: p_G [M, d] shared, U [M, b] and V [b, d] private (Cui et al. 2024).

    The defaults are those of the authors' released script; their argument parser says b = 4 and mu = 1 instead.
    """

    name: ClassVar[str] = "fedpgp"
    source: ClassVar[str] = "Cui et al., ICML 2024, arXiv 2405.09771"

    bottleneck: int = Field(
        default=8, ge=0, le=1024, description="b, the rank of the personal part U V; 0 has none (authors' script)"
    )
    mu: float = Field(default=0.5, ge=0, le=1e6, description="weight of the contrastive term (authors' script)")
    tau: float = Field(default=0.5, ge=1e-6, description="temperature of the contrastive term (authors' script)")
    guidance: Literal["template", "placeholder"] = Field(
        default="template", description='z_C from "a photo of a {}." (paper) or from "X X … X {}." (authors\' code)'
    )
    private_learning_rate: float | None = Field(
        default=None, gt=0, le=1e3, description="of U and V; unset: learning_rate (paper)"
    )

    @property
    def template(self) -> str:
        return TEMPLATE if self.guidance == "template" else "X " * self.context_length + "{}."

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.private_learning_rate or self.learning_rate}

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        M = len(self.new_context(backbone, torch.Generator()))
        b, d = self.bottleneck, backbone.token_width
        return {"U": normal(rng, M, b).to(backbone.logit_scale), "V": normal(rng, b, d).to(backbone.logit_scale)}

    def prompts(self, params: Params) -> Tensor:  # [2, M, d]: p_G, p_i
        p_G = params.shared["p_G"]
        return torch.stack([p_G, p_G + params.private["U"] @ params.private["V"]])

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        z_G, z_i = text
        pull, push = (frozen.guidance * z_G).sum(-1), (z_G * z_i).sum(-1)  # cosines [C]
        # −log(exp(pull/τ) / (exp(pull/τ) + exp(push/τ))) is softplus((push − pull)/τ)
        contrast = F.softplus((push - pull) / self.tau).mean()
        task = F.cross_entropy(self.predict(params, text, batch.images, frozen), batch.labels)
        return {"task": task, "contrastive": self.mu * contrast}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[1], images, frozen)

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {name: torch.zeros_like(tensor) for name, tensor in params.private.items()})

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return {
            "cosine_guidance_global": mean_cosine(frozen.guidance, text[0]),
            "cosine_global_personal": mean_cosine(text[0], text[1]),
        }
