"""FedAMP on prompts: each client has its own prompt, which is attracted to the prompts of similar clients."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators.base import Aggregator, Download, Server, Tensors, Upload
from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params, SinglePromptMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttentiveMessages(Aggregator):
    """Sends client i the mixture u_i = Σ_j ξ_ij w_j of the clients' last prompts w_j (Huang et al. 2021, section 4).

    The server remembers all prompts, {"w": [N, …]}, and computes the weights ξ_i when it sends u_i. Sums run over
    sorted numbers, so the result does not depend on the order of the clients, not even by rounding.
    """

    name = "fedamp"
    source = "Huang et al. 2021, AAAI, arXiv 2007.03797"
    personal = True

    alpha: float
    sigma: float
    heuristic: bool
    sharpness: float
    self_weight: float

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, {"w": torch.stack([shared["p"]] * clients)})

    def download(self, server: Server, client: int) -> Download:
        w = server.memory["w"]
        weights = self.weights(w.flatten(1), client).view(-1, *[1] * (w.dim() - 1))
        # A sum of differences from w_i, so that equal prompts give exactly w_i.
        return Download({"p": w[client] + _sum(weights * (w - w[client]))})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        w = server.memory["w"].clone()
        for upload in uploads:
            w[upload.client] = upload.shared["p"]
        return Server(server.shared, {"w": w})

    def weights(self, w: Tensor, i: int) -> Tensor:
        """Return the weights ξ_i [N] of the flattened prompts w [N, P]. They are not negative, and their sum is 1."""
        others = torch.arange(len(w), device=w.device) != i
        if len(w) == 1:
            return torch.ones_like(w[:, 0])
        if self.heuristic:
            cosine = F.cosine_similarity(w, w[i], dim=-1)
            scores = torch.exp(self.sharpness * (cosine - cosine[others].max())) * others
            weights = (1 - self.self_weight) * scores / _sum(scores)
        else:
            weights = self.alpha / self.sigma * torch.exp(-(w - w[i]).square().sum(-1) / self.sigma) * others
            weights = weights / _sum(weights).clamp(min=1)
        weights[i] = (1 - _sum(weights)).clamp(min=0)
        return weights


def _sum(values: Tensor) -> Tensor:
    """Sum over the first dimension with a result that does not depend on the order."""
    return values.sort(dim=0).values.sum(0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptAMP(SinglePromptMethod):
    """A prompt w on each client, attracted to a mixture u_i of similar clients' prompts (Huang et al. 2021).

    Client i minimises CE + λ/(2α) ‖w − u_i‖², where u_i = Σ_j ξ_ij w_j comes from the server. It continues from its own
    w in each round, and starts from u_i in its first round.

    FedAMP has ξ_ij = (α/σ) exp(−‖w_i − w_j‖²/σ) for j ≠ i, and ξ_ii = 1 − Σ_(j ≠ i) ξ_ij. If prompts are so close that
    ξ_ii would be negative, the other ξ_ij are scaled to a sum of 1, which equals a smaller α in u_i only. HeurFedAMP
    has a fixed ξ_ii and a softmax of cosines for the others. α is constant here; in the paper, it decreases with the
    rounds.

    σ must fit the distances between prompts. After 20 rounds of the embedded benchmark with the defaults below, we
    observed squared distances of 0.3 to 0.7. If the prompts start from a phrase, with learning rate 0.07 and λ = 0.1,
    we observed 9 to 29. Clients then have no influence on each other with σ = 1.
    """

    name = "prompt-amp"
    source = "FedAMP, Huang et al. 2021, arXiv 2007.03797, on CoOp's prompt"
    year = 2021
    venue = "AAAI"
    personalizes_shared = True
    continues_shared = True
    context_names = ("personal",)

    attraction: Factor = Field(default=1.0, description="λ, weight of the attraction (a third party's code)")
    alpha: float = Field(
        default=1.0, gt=0, le=1e9, description="α, step size towards the other prompts (public code: PFLlib)"
    )
    sigma: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="σ, squared distance at which the attention has fallen to 1/e (public code: PFLlib)",
    )
    heuristic: bool = Field(default=False, description="Use HeurFedAMP's weights instead of FedAMP's")
    sharpness: Factor = Field(
        default=25.0, description="σ of HeurFedAMP, factor of the cosines in the softmax (source not found)"
    )
    self_weight: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="ξ_ii of HeurFedAMP, weight of the client's own prompt (source not found; older versions of"
        " PFLlib: 1.0)",
    )

    def own_aggregator(self, rounds: int) -> AttentiveMessages:
        return AttentiveMessages(
            alpha=self.alpha,
            sigma=self.sigma,
            heuristic=self.heuristic,
            sharpness=self.sharpness,
            self_weight=self.self_weight,
        )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p": self.new_contexts(task, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [self.contexts(params.shared["p"], frozen)]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        away = params.shared["p"] - params.received["p"]
        attraction = self.attraction / (2 * self.alpha) * away.square().sum()
        return {**super().loss(params, text, batch, frozen), "attraction": attraction}
