"""PromptFolio: a mixture of what a global and a personal prompt say."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Frozen, Params, PromptMethod, logits


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptFolio(PromptMethod):
    """(1 − θ) z_G + θ z_L, of unit length before they are mixed and not after: p_G shared, p private (Pan et al. 2024).

    Both prompts are trained at once on the cross-entropy. The paper derives an optimal θ from quantities that nobody
    can measure; its code has a constant. Each prompt has a draw of its own, a phrase starts both.
    """

    name = "promptfolio"
    source = "Pan et al. 2024, NeurIPS, arXiv 2409.19610"
    year = 2024
    venue = "NeurIPS"
    context_names = ("global", "personal")

    mixing: float = Field(
        default=0.4, ge=0, le=1, description="θ, weight of the personal prompt (authors' README, in its example)"
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        return {"p": self.new_context(backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [params.shared["p_G"], params.private["p"]]

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        z_G, z_L = text
        return logits((1 - self.mixing) * z_G + self.mixing * z_L, images, frozen)

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {"p": params.shared["p_G"]})
