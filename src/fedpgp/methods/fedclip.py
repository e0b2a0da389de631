"""An adapter of image features that the server averages. The prompts are hand-written."""

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
    """An adapter that weights each component of the image features; no prompt is learned (Lu et al. 2023).

    With f [D] the features of an image, z_c the text feature of a hand-written prompt, and s = exp(logit scale),

        a(f) = softmax(W₂ tanh(W₁ f + b₁) + b₂),    v = a(f) ⊙ f / ‖a(f) ⊙ f‖,    logits s v·z_c.

    The training objective matches each image of a batch with the text of its class among the texts of the batch, and
    each text with its image: S_ij = s v_i·z_(y_j), and the loss is the mean of the cross-entropies of S and Sᵀ with the
    diagonal as labels. Two images of the same class count as wrong matches of each other. A batch of one image has loss
    0. The public code skips the step for such a batch; here the optimizer still applies its momentum and weight decay.

    Other differences from the public code: its f does not have unit length; its prompt is "a picture of a {}"; and its
    average does not weight the clients (here, `weighting` of the aggregator decides). Both start a new optimizer in
    each round. With SGD and the learning rate of prompts, 1e-3, the adapter hardly changes.
    """

    name = "fedclip"
    source = "Lu et al. 2023, arXiv 2302.13485"
    year = 2023
    venue = "IEEE Data Engineering Bulletin"

    guidance: Guidance = "template"
    objective: Literal["contrastive", "cross-entropy"] = Field(
        default="contrastive",
        description='Loss: "contrastive" within the batch (public code), or "cross-entropy" over all base classes',
    )
    learning_rate: float = Field(default=5e-5, gt=0, le=1e3, description="Learning rate (public code)")
    optimizer: Optimizer | None = Field(default="adam", description="Optimizer (public code)")
    betas: tuple[Beta, Beta] | None = Field(
        default=(0.9, 0.98), strict=False, description="Betas of Adam (public code)"
    )
    eps: float | None = Field(default=1e-6, gt=0, le=1, description="Epsilon of Adam (public code)")
    weight_decay: float | None = Field(
        default=0.2, ge=0, le=1e3, description="Weight decay, added to the gradient (public code)"
    )

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
