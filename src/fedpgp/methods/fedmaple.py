"""Text prompts in several layers, and visual prompts that are linear functions of them. The server averages both."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Count, Params, Reads, uniform
from fedpgp.methods.deep import DeepPhraseMethod, check_depth, prompt_of


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedMaPLe(DeepPhraseMethod):
    """Text prompts P_1 … P_J [M, d], and visual prompts V_1 … V_J computed from them (MaPLe, Khattak et al. 2023).

        V_l = P_l W_lᵀ + b_l,        W [J, w, d], b [J, w].

    P_l and V_l have the same positions in the towers as in FedIVLP, so P_l gets gradients from both towers. The loss is
    the cross-entropy. The linear maps are initialized like PyTorch's linear layers: one random draw for the first
    layer, and another one that all other layers share. The paper has M = 2 and J = 9, and J = 3 across datasets. The
    words "a photo" are learned and "of a" stays fixed in front of the class name, as in the public code; as far as we
    know, the paper does not mention this.

    P, W and b are averaged separately, as in the public code of others (FLiP, FedMGP). Therefore the averaged visual
    prompt is not the average of the clients' visual prompts. W and b make up nearly all numbers that a client sends:
    3,545,856 of 3,555,072 with ViT-B/16.
    """

    name = "fedmaple"
    source = "MaPLe, Khattak et al. 2023, arXiv 2210.03117, averaged"
    year = 2023
    venue = "CVPR"

    context_length: Count = Field(
        default=2, description="M, number of vectors of a layer's prompt in each tower (paper)"
    )
    visual: bool = Field(default=True, description="Use visual prompts; false: only text prompts (an ablation)")

    @property
    def reads(self) -> tuple[Reads, ...]:
        return ("deep text", "image tower" if self.visual else "images")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        text = self.new_text(backbone, rng)
        if not self.visual:
            return text
        check_depth(self.name, self.depth, "image", backbone.image.layers)
        w, d = backbone.image.token_width, backbone.token_width
        # One draw for the first layer, and one for all other layers.
        W_1, b_1, W, b = (uniform(rng, d, *shape).to(backbone.logit_scale) for shape in ((w, d), (w,)) * 2)
        deeper = self.depth - 1
        return {**text, "W": torch.stack([W_1, *[W] * deeper]), "b": torch.stack([b_1, *[b] * deeper])}

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        if not self.visual:
            return []
        P, W, b = prompt_of(params.shared, "text"), params.shared["W"], params.shared["b"]
        deeper = None if P.deeper is None else P.deeper @ W[1:].mT + b[1:, None]
        return [Prompt(F.linear(P.vectors, W[0], b[0]), deeper)]
