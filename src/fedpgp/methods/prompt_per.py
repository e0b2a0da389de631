"""One prompt, whose first vectors are everybody's and whose last are the client's own."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Frozen, Params, PromptMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptPer(PromptMethod):
    """p_i = [p_G; p]: p_G [L, d] shared, p [M − L, d] private, trained together (FedPer, Arivazhagan et al. 2019).

    FedPer shares the first layers of a network. What that is in a prompt we take from public code: its first vectors;
    we know of no paper that compares with it and says how it split. The shared vectors alone predict nothing.
    """

    name = "prompt-per"
    source = "FedPer, Arivazhagan et al. 2019, arXiv 1912.00818, on CoOp's prompt"
    year = 2019
    venue = "arXiv"
    context_names = ("personal",)

    shared_length: int | None = Field(
        default=None, ge=0, le=1024, description="L, shared vectors; unset: half of them, rounded down (public code)"
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        context = self.new_context(backbone, rng)
        L = self._shared(context)
        return {"p_G": context[:L]} if L else {}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        context = self.new_context(backbone, rng)
        L = self._shared(context)
        return {"p": context[L:]} if len(context) > L else {}

    def _shared(self, context: Tensor) -> int:
        """L; raises ConfigError where the context is shorter, or too short for a half of it."""
        M = len(context)
        if self.shared_length is None and M == 1:
            raise ConfigError(
                f"{self.name}.shared_length must be 0 or 1 for a context of one vector, got none: half of one vector is"
                f" 0, and nothing would be shared. Set {self.name}.shared_length=1, or take a longer context"
            )
        if self.shared_length is not None and self.shared_length > M:
            raise ConfigError(
                f"{self.name}.shared_length must be at most the context length {M}, got {self.shared_length}"
            )
        return M // 2 if self.shared_length is None else self.shared_length

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [torch.cat([*params.shared.values(), *params.private.values()])]
