"""A global and a personal prompt. Optimal transport assigns a part of the patches of an image to them."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Fraction, Frozen, Params
from fedpgp.methods.transport import TransportMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedOTP(TransportMethod):
    """A shared and a private prompt, compared with the image patches that fit them best (Li et al. 2024).

    p_G [M, d] is shared and p_i [M, d] is private. With g_p [D] the feature of patch p of an image, h_1c and h_2c [D]
    the text features of class c with p_G and p_i, all of unit length, s = exp(logit scale) and N = 2, the logits are

        s Σ_pn T_pn g_p·h_nc,    T = argmin Σ_pn T_pn (1 − g_p·h_nc) + ε Σ_pn T_pn (log T_pn − 1),

    over the plans [P, N] of class c whose rows sum to at most 1 / P and whose columns sum to γ / N: a part 1 − γ of the
    patches may be left out. With γ = 1, no patch may be left out and each row sums to 1 / P. The loss is the
    cross-entropy, in which T is a constant. Both prompts are trained at the same time. Up to a constant that is the
    same for all classes, these are the paper's logits. T sums to γ, so the logits are γ times as large as CLIP's. Of
    the paper we read only the abstract; the rest is from the public code.

    The public code stops after 100 iterations, or when the mean change of the scaling over the batch is below 0.001.
    Here each plan converges separately, in fewer iterations of another algorithm. We solve γ = 1 as a problem with
    equalities, for which the iterations of the code would take thousands of steps. In the public code, all clients take
    part in the first round, so that each trains a personal prompt (`federation.everyone_first`). Without this setting,
    a client that never took part keeps its initial personal prompt. Each prompt has its own random draw; a phrase
    initializes both.
    """

    name = "fedotp"
    source = "Li et al., CVPR 2024, arXiv 2403.00041"
    year = 2024
    venue = "CVPR"
    context_names = ("global", "personal")

    mass: Fraction = Field(
        default=0.8,
        description="γ, share of the patches that is compared (both scripts of the public code; its default is 1)",
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_context(backbone, rng)}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        return {"p_i": self.new_context(backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [params.shared["p_G"], params.private["p_i"]]

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return self.carried(text, images, frozen, self.mass)

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {"p_i": params.shared["p_G"]})
