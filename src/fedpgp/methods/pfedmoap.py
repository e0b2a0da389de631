"""A prompt per client beside frozen ones of other clients, weighed by a gate for every image."""

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
    """FedAvg that keeps every client's last prompt p, and sends a client the nearest of the others' (Luo et al. 2025).

    Memory: "prompts" [N, M, d] and "known" [N], who has taken part. To client i it sends the average and "experts"
    [E, M, d], at most `others` of them by their Frobenius distance to i's last prompt; none before i has taken part.
    """

    name = "nearest-experts"
    source = "Luo et al., ICLR 2025, arXiv 2410.10114"
    personal = True

    others: int = Field(default=9, ge=0, description="most experts that a client is sent (public code)")

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
    """Each client's prompt p [M, d] in a mixture with E frozen ones of others, by attention (Luo et al. 2025).

    A round starts p from the average, and sends the E prompts that are nearest to the one that the client sent last.
    With T [1 + E, C, D] the text features of p and of those, f an image, and pool(z) every R-th number of z, down to
    the gate's width g (R = D // g), the gate makes a text feature of each class c for each image:

        h_c = MHA(query pool(f), keys and values pool(T_c)),    softmax(10 · q·k) over 1 + E in each head,

    with the private gate [4, g, g + 1]: weights and, in the last column, biases of query, key, value and output. The
    logits are

        λ · s f·T_0c + s pool(f)·h_c,        s = exp(logit scale).

    Without experts they are s f·T_0c and the gate stays as it is. So it is for a client in its first round, and for
    somebody new, who takes the average. A client keeps and predicts with the p that it trained last.

    In the public code it then predicts with the experts of that round; here with those that the server would send it
    next, so that after its first round the experts are mixed by a gate that no step has trained. There the prompts of a
    round also reach the clients that are trained later in it; here none do. The gate of the public code is given a
    dropout of 0.1, which it never applies.
    """

    name = "pfedmoap"
    source = "Luo et al., ICLR 2025, arXiv 2410.10114"
    year = 2025
    venue = "ICLR"
    personalizes_shared = True

    experts: int = Field(
        default=10, ge=1, le=10_000, description="1 + E at most, the client's own included (public code)"
    )
    mixing: Factor = Field(default=0.5, description="λ, weight of the client's own logits (public code)")
    gate_width: int = Field(default=128, ge=1, le=65_536, description="g, of queries, keys and values (public code)")
    heads: Count = Field(default=8, description="of the gate's attention (public code)")
    scaling: Factor = Field(default=10.0, description="of the attention's products (public code)")
    gate_learning_rate: LearningRate = Field(
        default=3e-3, description="of the gate (a third party's code; paper and its configuration: 0.01)"
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
                f"{self.name}.gate_width must be at most {D}, the width of the checkpoint's features, got {g}"
            )
        if g % self.heads:
            raise ConfigError(f"{self.name}.heads must divide gate_width, {g}, got {self.heads}")
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
        # f·h = f·(W₃ a + b₃) = (W₃ᵀ f)·a + f·b₃: so the output layer reads each image once, not with every class
        seen = torch.einsum("bhk,echk->hbec", self._heads(f @ W[3]), value)
        mixture = (attention * seen).sum((0, 2)) + (f @ b[3])[:, None]
        return self.mixing * own + frozen.logit_scale.exp() * mixture

    def _heads(self, x: Tensor) -> Tensor:
        """[..., g] -> [..., heads, g / heads]."""
        return x.unflatten(-1, (self.heads, -1))

    def _pool(self, features: Tensor) -> Tensor:
        """Every R-th number: [..., D] -> [..., g]."""
        return features[..., :: features.shape[-1] // self.gate_width][..., : self.gate_width]

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {})
