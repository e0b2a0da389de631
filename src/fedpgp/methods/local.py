"""Each client alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Frozen, Params, SinglePromptMethod, mean_cosine

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Local(SinglePromptMethod):
    """Every client trains a prompt of its own and keeps it from round to round; nothing is sent (CoOp per client)."""

    name: ClassVar[str] = "local"
    source: ClassVar[str] = "CoOp, Zhou et al. 2021, arXiv 2109.01134, on each client's data"
    year: ClassVar[int] = 2022
    venue: ClassVar[str] = "IJCV"

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        return {"p": self.new_contexts(task, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [self.contexts(params.private["p"], frozen)]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return {"task": F.cross_entropy(self.predict(params, text, batch.features, frozen), batch.labels)}

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return {"cosine_guidance_personal": mean_cosine(frozen.guidance, text[0])}
