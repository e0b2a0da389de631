"""One prompt for all clients, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Frozen, Params, SinglePromptMethod, mean_cosine

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptFL(SinglePromptMethod):
    """Every client trains the same prompt p_G; the server averages (Guo et al. 2022)."""

    name: ClassVar[str] = "promptfl"
    source: ClassVar[str] = (
        "Guo et al. 2022, arXiv 2208.11625; the prompt is CoOp's, Zhou et al. 2021, arXiv 2109.01134"
    )
    year: ClassVar[int] = 2023
    venue: ClassVar[str] = "IEEE TMC"

    finetuning: int = Field(
        default=0, ge=0, le=10_000, description="epochs of every client for itself after the last round (PromptFL + FT)"
    )

    @property
    def finetune_epochs(self) -> int:
        return self.finetuning

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_contexts(task, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [self.contexts(params.shared["p_G"], frozen)]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return {"task": F.cross_entropy(self.predict(params, text, batch.features, frozen), batch.labels)}

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return {"cosine_guidance_global": mean_cosine(frozen.guidance, text[0])}
