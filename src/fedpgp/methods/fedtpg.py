"""A generator that makes the prompt from the names of the classes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Count, Frozen, LearningRate, Params, TrainedMethod, normal


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedTPG(TrainedMethod):
    """The prompt is made from the names of the classes that are to be told apart (Qiu et al. 2024).

    With Q [M, d] learned queries and T [C, D] the text features of the bare class names, the one context of these
    classes is

        X = MHA(query LN(Q), keys and values LN(T)),    p = X + W₂ (a ⊙ gelu(b)) + b₂,    (a, b) = W₁ LN(X) + b₁,

    with W₁ [8 d, d] in two halves. All of the generator is shared. A client trains on its own classes alone, in the
    softmax and in T; at prediction T has the classes of the softmax, novel ones too. A client of one class has loss 0.

    The generator is that of the public code; the paper also speaks of deeper ones. The public code does not weight
    clients in the average; here that is the aggregator's `weighting`. With its batches of 200 images and 8 shots, a
    client makes one step a round, or two if it has more than 25 classes. The state of its optimizer outlives the round.
    Its weight decay is 1e-5, its learning rate follows a cosine over the rounds, and its images are not augmented.
    """

    name = "fedtpg"
    source = "Qiu et al., ICLR 2024, arXiv 2310.06123"
    year = 2024
    venue = "ICLR"
    own_classes = True

    context_length: Count = Field(default=4, description="M, context vectors (public code)")
    heads: Count = Field(default=4, description="of the generator's attention (public code)")
    learning_rate: LearningRate = Field(default=0.003, description="(public code, where it falls as a cosine)")

    def templates(self, task: Task) -> Sequence[str]:
        return ("{}",)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        d, D = backbone.token_width, backbone.image.width
        if d % self.heads:
            raise ConfigError(
                f"{self.name}.heads must divide {d}, the width of the checkpoint's tokens, got {self.heads}"
            )

        def uniform(bound: float, *shape: int) -> Tensor:
            return bound * (2 * torch.rand(*shape, generator=rng) - 1)

        first = {
            "queries": normal(rng, self.context_length, d),
            # attention and linear layers start as PyTorch's, which for D = d are these
            **{
                part: uniform(math.sqrt(6 / (3 * d + width)), d, width)
                for part, width in (("query", d), ("key", D), ("value", D))
            },
            "bias": torch.zeros(3 * d),  # of query, key and value
            "out.weight": uniform(1 / math.sqrt(d), d, d),
            "out.bias": torch.zeros(d),
            "up.weight": uniform(1 / math.sqrt(d), 8 * d, d),
            "up.bias": uniform(1 / math.sqrt(d), 8 * d),
            "down.weight": uniform(1 / math.sqrt(4 * d), d, 4 * d),
            "down.bias": uniform(1 / math.sqrt(4 * d), d),
        }
        for norm, width in (("norm_queries", d), ("norm_names", D), ("norm_up", d)):
            first |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
        return {name: tensor.to(backbone.logit_scale) for name, tensor in first.items()}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        theta = params.shared

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, theta[f"{name}.weight"], theta[f"{name}.bias"])

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], theta[f"{name}.weight"], theta[f"{name}.bias"])

        Q, T = norm(theta["queries"], "norm_queries"), norm(frozen.guidance, "norm_names")
        query, key, value = (
            F.linear(x, theta[part], bias).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # [heads, ·, d / heads]
            for part, x, bias in zip(("query", "key", "value"), (Q, T, T), theta["bias"].chunk(3), strict=True)
        )
        attention = (query @ key.mT / math.sqrt(key.shape[-1])).softmax(-1)
        X = linear((attention @ value).transpose(0, 1).flatten(1), "out")
        a, b = linear(norm(X, "norm_up"), "up").chunk(2, dim=-1)
        return [X + linear(a * F.gelu(b), "down")]
