"""CLIP as it is, with a hand-written prompt."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Frozen, Method, Params, logits


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZeroShot(Method):
    """Nothing is trained and nothing is sent: the class is that of the nearest "a photo of a {class}."."""

    name: ClassVar[str] = "zero-shot"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020, section 3.1"

    def prompts(self, params: Params) -> Tensor:
        return torch.empty(0, 0, 0)

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return {}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(frozen.guidance, images, frozen)
