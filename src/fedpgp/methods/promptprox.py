"""PromptFL with FedProx's proximal term, which pulls a client's prompt towards the server's."""

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params
from fedpgp.methods.promptfl import PromptFL


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptProx(PromptFL):
    """PromptFL with the proximal term (μ/2) ‖p_G − p_G^t‖² in the clients' loss (Li et al. 2020, equation 2).

    p_G^t is the prompt at the beginning of round t. Some public code computes the distance from detached tensors, so
    its proximal term has no gradient. Here it has a gradient.
    """

    name = "promptprox"
    source = "FedProx, Li et al. 2020, arXiv 1812.06127, on PromptFL"
    year = 2020
    venue = "MLSys"

    mu: Factor = Field(default=0.5, description="μ, weight of the proximal term (FedOTP's public code)")

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        moved = params.shared["p_G"] - params.received["p_G"]
        return {**super().loss(params, text, batch, frozen), "proximal": self.mu / 2 * moved.square().sum()}
