"""A context that a small network shifts for each image. The server averages both."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Frozen, Params, PromptMethod, uniform


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedCoCoOp(PromptMethod):
    """CoCoOp on each client: one context p [M, d] and a Meta-Net that shifts it for each image (Zhou et al. 2022).

    With x [D] the feature of an image, of unit length, h = max(1, ⌊D/16⌋), W₁ [h, D], W₂ [d, h], s = exp(logit scale)
    and g_c the text feature of class c,

        π(x) = W₂ relu(W₁ x + b₁) + b₂,    p_m(x) = p_m + π(x) for every m,    logits s x·g_c(p(x)).

    The loss is the cross-entropy. The context p and the Meta-Net are shared and averaged. All clients start from the
    same Meta-Net, because an average of unrelated hidden units would be meaningless.

    The method needs C text encodings for each image, in training and in prediction. A context that does not depend on
    the image needs C for each step. The Meta-Net is initialized like PyTorch's linear layers, as in the public code.
    Therefore the first predictions differ from the predictions with the phrase: with the embedded checkpoint, b₂ has a
    norm of 2.3 and the embedding of a token has a norm of 0.8. The public code trains in half precision with batches of
    one image; the definition is the same for any batch. We know of no paper on CoCoOp in a federation. Public
    implementations average all parameters, and so do we.
    """

    name = "fedcocoop"
    source = "CoCoOp, Zhou et al., CVPR 2022, arXiv 2203.05557, on each client, averaged as in PromptFL"
    year = 2022
    venue = "CVPR"
    reads = ("text per image", "images")

    ctx_init: str = Field(
        default="a photo of a",
        min_length=1,
        description='Initial context: a phrase (public code), or "random" for N(0, 0.02²)',
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        D, d = backbone.image.width, backbone.token_width
        h = max(1, D // 16)
        p = self.new_context(backbone, rng)
        W_1, b_1 = uniform(rng, D, h, D), uniform(rng, D, h)
        W_2, b_2 = uniform(rng, h, d, h), uniform(rng, h, d)
        first = {"p": p, "W_1": W_1, "b_1": b_1, "W_2": W_2, "b_2": b_2}
        return {name: tensor.to(backbone.logit_scale) for name, tensor in first.items()}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return []

    def conditional_prompts(self, params: Params, images: Tensor, frozen: Frozen) -> Sequence[Tensor]:
        theta = params.shared
        hidden = F.linear(images, theta["W_1"], theta["b_1"]).relu()
        shift = F.linear(hidden, theta["W_2"], theta["b_2"])
        return list(theta["p"] + shift[:, None])

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return frozen.logit_scale.exp() * torch.einsum("bd,bcd->bc", images, text)  # image b with the text made for b
