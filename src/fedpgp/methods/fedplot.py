"""Several averaged prompts. Optimal transport assigns the patches of an image to them."""

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
    """N shared prompts P [N, M, d], compared with the image patches as in PLOT (Chen et al. 2023).

    Each prompt is averaged separately. With g_p [D] the feature of patch p of an image and h_nc [D] the text feature of
    class c with prompt n, both of unit length, and s = exp(logit scale), the logits are

        s Σ_pn T_pn g_p·h_nc,    T = argmin Σ_pn T_pn (1 − g_p·h_nc) + ε Σ_pn T_pn (log T_pn − 1),

    over the plans [P, N] of class c whose rows sum to 1 / P and whose columns sum to 1 / N. The loss is the
    cross-entropy, in which T is a constant. T sums to 1, so up to a constant that is the same for all classes, these
    are the paper's logits (1 − distance) / temperature. With N = 1, the prompt is compared with the mean of all patches
    for any ε.

    PLOT trains one model on one dataset. Other studies average its prompts as a federated baseline (FLiP, arXiv
    2503.22263). PLOT's public code reads the patches of a ResNet, projected by the last pooling layer. The patches of a
    ViT are the outputs of the last layer, projected like the class token, as in FedOTP's code. The public code stops
    after 100 iterations, or when the mean change of the scaling over the batch is below 0.01; here each plan converges
    separately. If the initial context is a phrase, the first prompt starts from its tokens, and the others from the
    same tokens plus N(0, 0.02²), because equal prompts would stay equal (ours).
    """

    name = "fedplot"
    source = "PLOT, Chen et al., ICLR 2023, arXiv 2210.01253, on each client, averaged as in PromptFL"
    year = 2023
    venue = "ICLR"
    context_names = ("global",)

    prompts_learned: Count = Field(default=4, description="N, number of prompts (example in the public code)")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"P": self.new_prompts(self.prompts_learned, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return list(params.shared["P"])

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return self.carried(text, images, frozen, mass=1)

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return super().diagnostics(F.normalize(text.mean(0), dim=-1)[None], frozen)
