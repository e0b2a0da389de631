"""A mixture of the client's prompt and frozen prompts of other clients, weighted by a gate for every image."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors, Upload
from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Count, Factor, Frozen, LearningRate, Params, PromptMethod, logits, uniform


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NearestExperts(FedAvg):
    """FedAvg that remembers each client's last prompt, and sends each client the nearest ones (Luo et al. 2025).

    The server remembers "prompts" [N, M, d] and "known" [N], which clients have taken part. It sends client i the
    average and "experts" [E, M, d]: the E ≤ `others` prompts of other clients with the smallest Frobenius distance to
    the last prompt of client i. Before client i has taken part, E is 0.
    """

    name = "nearest-experts"
    source = "Luo et al., ICLR 2025, arXiv 2410.10114"
    personal = True

    others: int = Field(default=9, ge=0, description="Largest number of experts sent to a client (public code)")

    def begin(self, shared: Tensors, clients: int) -> Server:
        p = shared["p"]
        return Server(shared, {"prompts": p.new_zeros(clients, *p.shape), "known": p.new_zeros(clients).bool()})

    def download(self, server: Server, client: int) -> Download:
        prompts, known = server.memory["prompts"], server.memory["known"].tolist()
        distances = (prompts - prompts[client]).flatten(1).norm(dim=1).tolist()
        candidates = [j for j in range(len(known)) if known[client] and known[j] and j != client]
        nearest = sorted(candidates, key=lambda j: distances[j])[: self.others]
        return Download({**server.shared, "experts": prompts[nearest]})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        prompts, known = server.memory["prompts"].clone(), server.memory["known"].clone()
        for upload in uploads:
            prompts[upload.client], known[upload.client] = upload.shared["p"], True
        return Server(super().aggregate(server, uploads).shared, {"prompts": prompts, "known": known})


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PFedMoAP(PromptMethod):
    """A mixture of the client's prompt p and E frozen prompts of other clients, by attention (Luo et al. 2025).

    In each round, p [M, d] starts from the average, and the server sends the E prompts that are nearest to the client's
    last prompt. T [1 + E, C, D] are the text features of p and of these prompts, and f is an image feature. pool(z)
    takes every R-th component of z, with R = D // g, where g is the width of the gate. For each image, the gate
    computes a text feature of each class c:

        h_c = MHA(query pool(f), keys and values pool(T_c)),    softmax(10 · q·k) over 1 + E in each head.

    The gate [4, g, g + 1] is private. It has the weights and, in the last column, the biases of query, key, value and
    output. The logits are

        λ · s f·T_0c + s pool(f)·h_c,        s = exp(logit scale).

    Without experts, the logits are s f·T_0c and the gate does not change. This is the case for a client in its first
    round, and for a new client, which uses the average. A client keeps the p that it trained last and predicts with it.

    Differences from the public code: there, a client predicts with the experts of its last round. Here it predicts with
    the experts that the server would send next, so after its first round an untrained gate mixes the experts. There,
    the prompts of a round also reach the clients that are trained later in the same round; here they do not. The public
    code has a dropout of 0.1 for the gate but never applies it.
    """

    name = "pfedmoap"
    source = "Luo et al., ICLR 2025, arXiv 2410.10114"
    year = 2025
    venue = "ICLR"
    personalizes_shared = True

    experts: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Largest number of prompts in the mixture, including the client's own (public code)",
    )
    mixing: Factor = Field(default=0.5, description="λ, weight of the logits of the client's own prompt (public code)")
    gate_width: int = Field(
        default=128, ge=1, le=65_536, description="g, width of the gate's queries, keys and values (public code)"
    )
    heads: Count = Field(default=8, description="Number of heads of the gate's attention (public code)")
    scaling: Factor = Field(
        default=10.0, description="Factor of the products of queries and keys in the gate's attention (public code)"
    )
    gate_learning_rate: LearningRate = Field(
        default=3e-3,
        description="Learning rate of the gate (a third party's code; paper and authors' configuration: 0.01)",
    )

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.gate_learning_rate}

    def own_aggregator(self, rounds: int) -> Aggregator:
        return NearestExperts(others=self.experts - 1)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        g, D = self.gate_width, backbone.image.width
        if g > D:
            raise ConfigError(
                where=f"{self.name}.gate_width",
                allowed=f"at most {D}, the feature width of the checkpoint",
                got=g,
                remedy=f"Use --set {self.name}.gate_width={D} or less",
            )
        if g % self.heads:
            raise ConfigError(
                where=f"{self.name}.heads",
                allowed=f"a divisor of {g}, the value of {self.name}.gate_width",
                got=self.heads,
                remedy=f"Use --set {self.name}.heads={math.gcd(g, self.heads)}",
            )
        return {"gate": uniform(rng, g, 4, g, g + 1).to(backbone.logit_scale)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [params.shared["p"]]

    def constant_prompts(self, params: Params) -> Sequence[Tensor]:
        return list(params.received["experts"]) if "experts" in params.received else []

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        own = logits(text[0], images, frozen)
        if len(text) == 1:
            return own
        f, T = self._pool(images), self._pool(text)
        W, b = params.private["gate"][..., :-1], params.private["gate"][..., -1]
        query, key, value = (self._heads(F.linear(x, W[part], b[part])) for part, x in enumerate((f, T, T)))
        attention = (self.scaling * torch.einsum("bhk,echk->hbec", query, key)).softmax(2)
        # f·h = f·(W₃ a + b₃) = (W₃ᵀ f)·a + f·b₃: the output layer is computed once for each image, not for each class.
        seen = torch.einsum("bhk,echk->hbec", self._heads(f @ W[3]), value)
        mixture = (attention * seen).sum((0, 2)) + (f @ b[3])[:, None]
        return self.mixing * own + frozen.logit_scale.exp() * mixture

    def _heads(self, x: Tensor) -> Tensor:
        """Split into heads: [..., g] -> [..., heads, g / heads]."""
        return x.unflatten(-1, (self.heads, -1))

    def _pool(self, features: Tensor) -> Tensor:
        """Take every R-th component: [..., D] -> [..., g]."""
        return features[..., :: features.shape[-1] // self.gate_width][..., : self.gate_width]

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {})
