"""A global and a personal prompt, between which optimal transport shares out a part of the patches of an image."""

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
    """p_G [M, d] shared and p_i [M, d] private, compared with the patches that suit them best (Li et al. 2024).

    With g_p [D] the feature of patch p of an image, h_1c and h_2c [D] those of p_G and p_i for class c, all of unit
    length, s = exp(logit scale) and N = 2, the logits are

        s Σ_pn T_pn g_p·h_nc,    T = argmin Σ_pn T_pn (1 − g_p·h_nc) + ε Σ_pn T_pn (log T_pn − 1),

    over the plans [P, N] of class c with rows of at most 1 / P and columns γ / N: a part 1 − γ of the patches may be
    left out. With γ = 1 nothing may, and rows are 1 / P. The loss is the cross-entropy, in which T is a constant; both
    prompts are trained at once. These are the paper's logits but for the same constant everywhere; as the sum of T is
    γ, all are γ times as large as CLIP's. What the paper says was read in its abstract and in the public code.

    Where the public code stops after 100 turns or when the scaling moves by less than 0.001 in the mean of the batch,
    each of our plans converges for itself, in fewer turns of another kind; γ = 1 is solved as what it is, for which the
    code's turns would take thousands. The code lets all clients take part in the first round, so that each trains a
    personal prompt (`federation.everyone_first`); otherwise a client that never took part has the one that it drew.
    Each prompt has a draw of its own, a phrase starts both.
    """

    name = "fedotp"
    source = "Li et al., CVPR 2024, arXiv 2403.00041"
    year = 2024
    venue = "CVPR"
    context_names = ("global", "personal")

    mass: Fraction = Field(
        default=0.8,
        description="γ, part of the patches that is compared (both scripts of the public code; without them 1)",
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
