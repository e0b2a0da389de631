"""A network that generates the prompt from the class names."""

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
    """A shared network that generates the prompt from the names of the classes (Qiu et al. 2024).

    With learned queries Q [M, d] and T [C, D] the text features of the bare class names, all classes have the context

        X = MHA(query LN(Q), keys and values LN(T)),    p = X + W₂ (a ⊙ gelu(b)) + b₂,    (a, b) = W₁ LN(X) + b₁,

    where a and b are the halves of a vector, and W₁ is [8 d, d]. The whole network is shared. A client only trains on
    its own classes, both in the softmax and in T. At prediction, T has all classes of the softmax, including novel
    classes. A client with one class has loss 0.

    The network is the one in the public code; the paper also mentions deeper networks. The public code does not weight
    the clients in the average; here, `weighting` of the aggregator decides. With its batches of 200 images and 8 shots,
    a client makes one step in a round, or two steps with more than 25 classes. Its optimizer keeps its state between
    rounds, its weight decay is 1e-5, its learning rate follows a cosine over the rounds, and its images are not
    augmented.
    """

    name = "fedtpg"
    source = "Qiu et al., ICLR 2024, arXiv 2310.06123"
    year = 2024
    venue = "ICLR"
    own_classes = True

    context_length: Count = Field(default=4, description="M, number of context vectors (public code)")
    heads: Count = Field(default=4, description="Number of heads of the network's attention (public code)")
    learning_rate: LearningRate = Field(
        default=0.003, description="Learning rate (public code, where it follows a cosine)"
    )

    def templates(self, task: Task) -> Sequence[str]:
        return ("{}",)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        d, D = backbone.token_width, backbone.image.width
        if d % self.heads:
            raise ConfigError(
                where=f"{self.name}.heads",
                allowed=f"a divisor of {d}, the token width of the checkpoint",
                got=self.heads,
                remedy=f"Use --set {self.name}.heads={math.gcd(d, self.heads)}",
            )

        def uniform(bound: float, *shape: int) -> Tensor:
            return bound * (2 * torch.rand(*shape, generator=rng) - 1)

        first = {
            "queries": normal(rng, self.context_length, d),
            # As PyTorch initializes attention and linear layers. Its attention layer has these bounds if D = d.
            **{
                part: uniform(math.sqrt(6 / (3 * d + width)), d, width)
                for part, width in (("query", d), ("key", D), ("value", D))
            },
            "bias": torch.zeros(3 * d),  # for query, key and value
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
