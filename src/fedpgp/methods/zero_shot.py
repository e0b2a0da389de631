"""CLIP as it is, with a hand-written prompt."""

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Frozen, Method, Params, logits
from fedpgp.methods.templates import Guidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZeroShot(Guided, Method):
    """Nothing is trained and nothing is sent: the class is that of the nearest "a photo of a {class}.".

    An ensemble's text feature is the mean of its templates', of unit length (Radford et al., section 3.1.4).
    """

    name = "zero-shot"
    source = "Radford et al. 2021, arXiv 2103.00020, section 3.1"
    year = 2021
    venue = "ICML"

    guidance: Guidance = "template"

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return []

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(frozen.guidance, images, frozen)
