"""FedPGP: a global prompt held close to CLIP, and a low-rank personal part."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, LearningRate, Params, PromptMethod, logits, normal
from fedpgp.methods.templates import TEMPLATE


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedPGP(PromptMethod):
    """p_i = p_G + U V: p_G [M, d] shared, U [M, b] and V [b, d] private (Cui et al. 2024).

    The defaults are those of the authors' released script; their argument parser says b = 4 and mu = 1 instead.
    The ablations: `full_rank` learns W [M, d] in the place of U V, from N(0, 0.02²); without the positive or the
    negative pair its cosine counts as 0 in the contrastive term. No public source gives a formula: it is our reading.
    """

    name = "fedpgp"
    source = "Cui et al., ICML 2024, arXiv 2405.09771"
    year = 2024
    venue = "ICML"
    context_names = ("global", "personal")

    bottleneck: int = Field(
        default=8, ge=0, le=1024, description="b, the rank of the personal part U V; 0 has none (authors' script)"
    )
    mu: Factor = Field(default=0.5, description="weight of the contrastive term (authors' script)")
    tau: float = Field(default=0.5, ge=1e-6, description="temperature of the contrastive term (authors' script)")
    guidance: Literal["template", "placeholder"] = Field(
        default="template", description='z_C from "a photo of a {}." (paper) or from "X X … X {}." (authors\' code)'
    )
    private_learning_rate: LearningRate | None = Field(
        default=None, description="of U and V; unset: learning_rate (paper)"
    )
    full_rank: bool = Field(default=False, description="a personal part of full rank in the place of U V (ablation)")
    positive: bool = Field(default=True, description="the contrastive term has its positive pair (ablation: false)")
    negative: bool = Field(default=True, description="the contrastive term has its negative pair (ablation: false)")

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.private_learning_rate or self.learning_rate}

    def templates(self, task: Task) -> Sequence[str]:
        return (TEMPLATE if self.guidance == "template" else "X " * self.context_length + "{}.",)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        M, b, d = self.vectors(backbone), self.bottleneck, backbone.token_width
        if self.full_rank:
            return {"W": normal(rng, M, d).to(backbone.logit_scale)}
        self.check_rank("bottleneck", b, backbone)
        return {"U": normal(rng, M, b).to(backbone.logit_scale), "V": normal(rng, b, d).to(backbone.logit_scale)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        p_G, own = params.shared["p_G"], params.private
        return [p_G, p_G + (own["W"] if self.full_rank else own["U"] @ own["V"])]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        z_G, z_i = text
        pull, push = (frozen.guidance * z_G).sum(-1), (z_G * z_i).sum(-1)  # cosines [C]
        # −log(exp(pull/τ) / (exp(pull/τ) + exp(push/τ))) is softplus((push − pull)/τ)
        contrast = F.softplus((self.negative * push - self.positive * pull) / self.tau).mean()
        return {**super().loss(params, text, batch, frozen), "contrastive": self.mu * contrast}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[1], images, frozen)

    def path(self, params: Params, alpha: float) -> Params:
        """p_G + α U V"""
        scaled = "W" if self.full_rank else "U"
        return replace(params, private={**params.private, scaled: alpha * params.private[scaled]})
