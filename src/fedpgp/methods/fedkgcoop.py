"""One averaged prompt whose text features stay close to the text features of a hand-written prompt."""

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.templates import AuthorsGuidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedKgCoOp(Guided, PromptFL):
    """PromptFL with KgCoOp's loss, which keeps the text features close to CLIP's (Yao et al. 2023).

    L = CE + w · 1/C Σ_c ‖z_c − z_C,c‖², over all base classes. z_c [D] is the text feature of class c with the learned
    prompt, and z_C,c [D] the one with the hand-written prompt, both of unit length.

    The authors' code uses 1 − cos. The squared distance is twice as large, so the weight 8 of the authors' script is 4
    here. The authors' code has one hand-written prompt for each dataset; guidance = "authors" selects it. It is CoOp's
    prompt ("dataset") except for DTD, where the authors use "a photo of a {}, a type of texture." and CoOp uses
    "{} texture.".
    """

    name = "fedkgcoop"
    source = "KgCoOp, Yao et al., CVPR 2023, arXiv 2303.13283, on each client, averaged as in PromptFL"
    year = 2023
    venue = "CVPR"

    weight: Factor = Field(
        default=4.0, description="w, weight of the squared distance (authors' script: 8 for 1 − cos)"
    )
    guidance: AuthorsGuidance = "template"

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        distance = (text[0] - frozen.guidance).square().sum(-1).mean()
        return {**super().loss(params, text, batch, frozen), "guidance": self.weight * distance}
