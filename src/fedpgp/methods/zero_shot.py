"""CLIP as it is, with a hand-written prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Frozen, Guidance, Method, Params, logits, templates_of

if TYPE_CHECKING:
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZeroShot(Method):
    """Nothing is trained and nothing is sent: the class is that of the nearest "a photo of a {class}.".

    An ensemble's text feature is the mean of its templates', of unit length (Radford et al., section 3.1.4).
    """

    name: ClassVar[str] = "zero-shot"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020, section 3.1"
    year: ClassVar[int] = 2021
    venue: ClassVar[str] = "ICML"

    guidance: Guidance = Field(
        default="template",
        description='"template": "a photo of a {}."; "dataset": the dataset\'s own; "ensemble", "ensemble-60": CLIP\'s',
    )

    def templates(self, task: Task) -> Sequence[str]:
        return templates_of(self.guidance, task)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return []

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return {}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(frozen.guidance, images, frozen)
