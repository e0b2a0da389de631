"""CLIP without any training, with hand-written prompts."""

from collections.abc import Sequence

from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Frozen, Method, Params, logits
from fedpgp.methods.templates import Guidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZeroShot(Guided, Method):
    """CLIP without training or communication: the class whose "a photo of a {class}." is nearest to the image.

    With several hand-written prompts, the text feature of a class is the mean of their features, normalized to unit
    length (Radford et al., section 3.1.4).
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
