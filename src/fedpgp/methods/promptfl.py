"""One prompt for all clients, averaged by the server."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Frozen, Params, SinglePromptMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptFL(SinglePromptMethod):
    """One shared prompt p_G. Every client trains it, and the server averages the results (Guo et al. 2022)."""

    name = "promptfl"
    source = "Guo et al. 2022, arXiv 2208.11625; the prompt is CoOp's, Zhou et al. 2021, arXiv 2109.01134"
    year = 2023
    venue = "IEEE TMC"
    context_names = ("global",)

    finetuning: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Epochs in which each client trains separately after the last round (PromptFL + FT)",
    )

    @property
    def finetune_epochs(self) -> int:
        return self.finetuning

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        return {"p_G": self.new_contexts(task, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [self.contexts(params.shared["p_G"], frozen)]
