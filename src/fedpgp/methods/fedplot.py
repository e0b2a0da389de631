"""Several averaged prompts, between which optimal transport shares out the patches of an image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Count, Frozen, Params
from fedpgp.methods.transport import TransportMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedPLOT(TransportMethod):
    """N prompts P [N, M, d], all shared and averaged one by one, compared with patches as PLOT does (Chen et al. 2023).

    With g_p [D] the feature of patch p of an image and h_nc [D] that of prompt n for class c, both of unit length, and
    s = exp(logit scale), the logits are

        s Σ_pn T_pn g_p·h_nc,    T = argmin Σ_pn T_pn (1 − g_p·h_nc) + ε Σ_pn T_pn (log T_pn − 1),

    over the plans [P, N] of class c with rows 1 / P and columns 1 / N. The loss is the cross-entropy, T a constant in
    it. As T has mass 1, these are the paper's logits (1 − distance) / temperature but for the same constant everywhere.
    One prompt is compared with the mean of all patches, whatever ε.

    PLOT trains one model on one data set; averaging is what studies take as its federated baseline (FLiP, arXiv
    2503.22263). Its public code reads a ResNet's patches, which the last pooling projects; those of a ViT leave the
    last layer and are projected as the class token is, as in FedOTP's code. Where it stops after 100 turns or when the
    scaling moves by less than 0.01 in the mean of the batch, each of our plans converges for itself. Of a phrase, the
    first prompt starts from its tokens and the others from these plus N(0, 0.02²), without which all would stay equal
    (ours).
    """

    name = "fedplot"
    source = "PLOT, Chen et al., ICLR 2023, arXiv 2210.01253, on each client, averaged as in PromptFL"
    year = 2023
    venue = "ICLR"
    context_names = ("global",)

    prompts_learned: Count = Field(default=4, description="N, prompts (public code's example)")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"P": self.new_prompts(self.prompts_learned, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return list(params.shared["P"])

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return self.carried(text, images, frozen, mass=1)

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return super().diagnostics(F.normalize(text.mean(0), dim=-1)[None], frozen)
