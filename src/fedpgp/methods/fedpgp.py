"""FedPGP: a global prompt that stays close to CLIP, and a low-rank personal part."""

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
    """A global prompt p_G plus a low-rank personal part on each client: p_i = p_G + U V (Cui et al. 2024).

    p_G [M, d] is shared. U [M, b] and V [b, d] are private. With z_G and z_i the text features [C, D] of p_G and p_i,
    and z_C the text features of the hand-written prompts, the loss adds to the cross-entropy of p_i the mean over the
    classes of

        −μ log(exp(cos(z_C, z_G)/τ) / (exp(cos(z_C, z_G)/τ) + exp(cos(z_G, z_i)/τ))),

    which pulls the global prompt towards CLIP (the positive pair) and pushes the personal prompt away from the global
    one (the negative pair).

    The defaults are the values of the authors' released script. Their argument parser has b = 4 and mu = 1 instead.

    Ablations: with `full_rank`, a client learns a matrix W [M, d], initialized from N(0, 0.02²), instead of U V.
    Without the positive or the negative pair, its cosine counts as 0 in the contrastive term. No public source gives a
    formula for these ablations, so this is our reading of the paper.
    """

    name = "fedpgp"
    source = "Cui et al., ICML 2024, arXiv 2405.09771"
    year = 2024
    venue = "ICML"
    context_names = ("global", "personal")

    bottleneck: int = Field(
        default=8, ge=0, le=1024, description="b, rank of the personal part U V; 0: no personal part (authors' script)"
    )
    mu: Factor = Field(default=0.5, description="μ, weight of the contrastive term (authors' script)")
    tau: float = Field(default=0.5, ge=1e-6, description="τ, temperature of the contrastive term (authors' script)")
    guidance: Literal["template", "placeholder"] = Field(
        default="template",
        description='Hand-written prompt for z_C: "template" for "a photo of a {}." (paper), "placeholder" for'
        ' "X X … X {}." (authors\' code)',
    )
    private_learning_rate: LearningRate | None = Field(
        default=None, description="Learning rate of U and V; if unset, learning_rate (paper)"
    )
    full_rank: bool = Field(default=False, description="Learn a personal part of full rank instead of U V (ablation)")
    positive: bool = Field(default=True, description="Use the positive pair of the contrastive term (ablation: false)")
    negative: bool = Field(default=True, description="Use the negative pair of the contrastive term (ablation: false)")

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
        """Return the model with the prompt p_G + α U V."""
        scaled = "W" if self.full_rank else "U"
        return replace(params, private={**params.private, scaled: alpha * params.private[scaled]})
