"""PromptFL with FedProx's pull towards the server's prompt."""

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params
from fedpgp.methods.promptfl import PromptFL


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptProx(PromptFL):
    """PromptFL whose clients add (μ/2) ‖p_G − p_G^t‖², with p_G^t as the round began (Li et al. 2020, equation 2).

    Some public code takes the distance of detached tensors, which has no gradient; here it has.
    """

    name = "promptprox"
    source = "FedProx, Li et al. 2020, arXiv 1812.06127, on PromptFL"
    year = 2020
    venue = "MLSys"

    mu: Factor = Field(default=0.5, description="weight of the proximal term (public code: FedOTP's)")

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        moved = params.shared["p_G"] - params.received["p_G"]
        return {**super().loss(params, text, batch, frozen), "proximal": self.mu / 2 * moved.square().sum()}
