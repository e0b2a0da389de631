"""One prompt for each client, without any communication."""

from collections.abc import Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Frozen, Params, SinglePromptMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Local(SinglePromptMethod):
    """Each client trains its own prompt and sends nothing (CoOp on each client)."""

    name = "local"
    source = "CoOp, Zhou et al. 2021, arXiv 2109.01134, on each client's data"
    year = 2022
    venue = "IJCV"
    context_names = ("personal",)

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        return {"p": self.new_contexts(task, backbone, rng)}

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [self.contexts(params.private["p"], frozen)]
