"""Visual prompts of the image tower that the server averages. The text prompts are hand-written."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Count, Frozen, LearningRate, Params, TrainedMethod, logits
from fedpgp.methods.deep import first_visual, prompt_of
from fedpgp.methods.templates import Guidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedVPT(Guided, TrainedMethod):
    """Visual prompts in the first J layers of the image tower, and no text prompts (VPT, Jia et al. 2022).

    V_1 [m, w] follows the patches, without positional embeddings and before the normalization in front of the first
    layer. At layer l = 2 … J, V_l [m, w] replaces the m tokens that layer l − 1 made of V_(l−1). After layer J, these
    tokens are treated like all others. With f(x) [D] the resulting image feature, z_c the text feature of a
    hand-written prompt, and s = exp(logit scale), the logits are s f(x)·z_c. J = 1 is VPT-shallow. The parameter
    "visual" is V_1; "visual_deeper" is V_2 … V_J.

    This is VPT in CLIP as in MaPLe's repository, which has m = 8 and J = 12 of 12 layers. In VPT's own code, the
    vectors are between the class token and the patches, are initialized from a uniform distribution, and are trained
    together with a linear classifier. All vectors are averaged, as in FedMGP's code, which has m = 4 and J = 1.
    """

    name = "fedvpt"
    source = "VPT, Jia et al. 2022, arXiv 2203.12119, in CLIP as in MaPLe's repository, averaged"
    year = 2022
    venue = "ECCV"
    reads = ("image tower",)

    visual_length: Count = Field(default=8, description="m, number of vectors of a layer's visual prompt (public code)")
    depth: Count | None = Field(
        default=None, description="J, number of layers with prompts; if unset, all layers (public code: 12 of 12)"
    )
    guidance: Guidance = "template"
    learning_rate: LearningRate = Field(
        default=1e-3, description="Learning rate (FedMGP's code; MaPLe's repository: 2.5e-3 with a cosine schedule)"
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        depth = backbone.image.layers if self.depth is None else self.depth
        return first_visual(self.name, self.visual_length, depth, backbone, rng)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return []

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "visual")]

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(frozen.guidance, images[:, 1], frozen)
