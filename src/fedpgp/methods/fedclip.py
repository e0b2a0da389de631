"""An adapter of image features, averaged; the prompts stay hand-written."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Batch, Beta, Frozen, Optimizer, Params, TrainedMethod, logits, uniform
from fedpgp.methods.templates import Guidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedCLIP(Guided, TrainedMethod):
    """No prompt is learned, but a weight for each number of an image's features (Lu et al. 2023).

    With f [D] an image's features, z_c the text feature of a hand-written prompt, and s = exp(logit scale),

        a(f) = softmax(W₂ tanh(W₁ f + b₁) + b₂),    v = a(f) ⊙ f / ‖a(f) ⊙ f‖,    logits s v·z_c.

    In training each image of a batch is to find its own class's text among those of the batch, and each text its own
    image: S_ij = s v_i·z_(y_j), and the loss is the mean of the cross-entropies of S and of Sᵀ with the diagonal.
    Images of one class count as wrong for each other, and a batch of one image has loss 0. The public code makes no
    step with it; here the optimizer makes one, of its momentum and weight decay.

    Here f has unit length, in the public code it has not. The prompt of the public code is "a picture of a {}", and its
    average does not weight clients, which is the aggregator's `weighting` here. Its optimizer is new in every round, as
    here. With SGD at the learning rate of prompts, 1e-3, the adapter hardly leaves its start.
    """

    name = "fedclip"
    source = "Lu et al. 2023, arXiv 2302.13485"
    year = 2023
    venue = "IEEE Data Engineering Bulletin"

    guidance: Guidance = "template"
    objective: Literal["contrastive", "cross-entropy"] = Field(
        default="contrastive",
        description='"contrastive": within the batch (public code); "cross-entropy": over all base classes',
    )
    learning_rate: float = Field(default=5e-5, gt=0, le=1e3, description="(public code)")
    optimizer: Optimizer | None = Field(default="adam", description="(public code)")
    betas: tuple[Beta, Beta] | None = Field(default=(0.9, 0.98), strict=False, description="of adam (public code)")
    eps: float | None = Field(default=1e-6, gt=0, le=1, description="of adam (public code)")
    weight_decay: float | None = Field(default=0.2, ge=0, le=1e3, description="added to the gradient (public code)")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        D = backbone.image.width
        shapes = {"W_1": (D, D), "b_1": (D,), "W_2": (D, D), "b_2": (D,)}
        return {name: uniform(rng, D, *shape).to(backbone.logit_scale) for name, shape in shapes.items()}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return []

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        similarities = self.predict(params, text, batch.features, frozen)
        if self.objective == "cross-entropy":
            return {"task": F.cross_entropy(similarities, batch.labels)}
        S, own = similarities[:, batch.labels], torch.arange(len(batch.labels), device=batch.labels.device)
        return {"task": (F.cross_entropy(S, own) + F.cross_entropy(S.T, own)) / 2}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        theta = params.shared
        hidden = F.linear(images, theta["W_1"], theta["b_1"]).tanh()
        weights = F.linear(hidden, theta["W_2"], theta["b_2"]).softmax(-1)
        return logits(frozen.guidance, F.normalize(weights * images, dim=-1), frozen)
