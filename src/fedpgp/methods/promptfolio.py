"""PromptFolio: a mixture of the text features of a global and a personal prompt."""

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
    """A mixture of the text features of a shared and a private prompt, (1 − θ) z_G + θ z_L (Pan et al. 2024).

    z_G comes from p_G, which is shared, and z_L from p, which is private. They have unit length, but the mixture is not
    normalized. Both prompts are trained at the same time with the cross-entropy. The paper derives an optimal θ from
    quantities that cannot be measured; its code has a constant. Each prompt has its own random draw; a phrase
    initializes both.
    """

    name = "promptfolio"
    source = "Pan et al. 2024, NeurIPS, arXiv 2409.19610"
    year = 2024
    venue = "NeurIPS"
    context_names = ("global", "personal")

    mixing: float = Field(
        default=0.4, ge=0, le=1, description="θ, weight of the personal prompt (example in the authors' README)"
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
