"""One averaged prompt, and a memory of each client's own images for prediction."""

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params, logits
from fedpgp.methods.promptfl import PromptFL


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PFedPrompt(PromptFL):
    """PromptFL whose clients predict with a memory of their training images (Guo et al. 2023).

    With F [n, D] the features of a client's training images, L [n, C] their one-hot labels, f an image and z_c the text
    features of the averaged prompt, the logits are

        s f·z_c + α exp(−β (1 − f Fᵀ)) L_c,        s = exp(logit scale).

    The second term is the cache of Tip-Adapter (Zhang et al. 2022). It has no parameters and is 0 for classes of which
    the client has no image. Training omits it, because each image would find itself in the memory. A new client has no
    memory and also omits it.

    We had neither the text of the paper nor public code. Two points are our reading of summaries of the paper: that its
    parameter-free attention has this form, and that it is only used for prediction. We could not confirm the source of
    the defaults of α and β: the configurations of Tip-Adapter that we read start from other values and search for
    better ones.
    """

    name = "pfedprompt"
    source = (
        "Guo et al., WWW 2023, doi 10.1145/3543507.3583518; the memory is Tip-Adapter's, Zhang et al., ECCV 2022,"
        " arXiv 2207.09519"
    )
    year = 2023
    venue = "WWW"

    alpha: Factor = Field(
        default=1.0,
        description="α, weight of the memory (source not found; Tip-Adapter starts at 1.17 on ImageNet, 2 on DTD)",
    )
    beta: Factor = Field(
        default=5.5,
        description="β, sharpness of the similarity to remembered images (source not found; Tip-Adapter starts at 1)",
    )

    def memory(self, images: Tensor, labels: Tensor, frozen: Frozen) -> dict[str, Tensor]:
        return {"keys": images, "labels": labels}

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return super().loss(Params(params.shared, params.private), text, batch, frozen)

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        plain = logits(text[0], images, frozen)
        if not params.memory:
            return plain
        affinity = torch.exp(-self.beta * (1 - images @ params.memory["keys"].T))
        one_hot = params.memory["labels"][:, None] == frozen.base  # [n, C]: labels are indices of base classes
        return plain + self.alpha * affinity @ one_hot.to(affinity)
