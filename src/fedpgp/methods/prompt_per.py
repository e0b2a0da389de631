"""One prompt whose first vectors are shared and whose last vectors are private."""

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
    """A prompt [p_G; p] with shared first vectors and private last vectors (FedPer, Arivazhagan et al. 2019).

    p_G [L, d] is shared and p [M − L, d] is private. Both are trained together. FedPer shares the first layers of a
    network. In public code, these are the first vectors of a prompt. We know of no paper that compares with this method
    and says how it splits the prompt. The shared part cannot predict without the private part.
    """

    name = "prompt-per"
    source = "FedPer, Arivazhagan et al. 2019, arXiv 1912.00818, on CoOp's prompt"
    year = 2019
    venue = "arXiv"
    context_names = ("personal",)

    shared_length: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="L, number of shared vectors; if unset, half of all vectors, rounded down (public code)",
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
        """Return L. Raise ConfigError if the context is shorter than L or has no half."""
        M = len(context)
        if self.shared_length is None and M == 1:
            raise ConfigError(
                where=f"{self.name}.shared_length",
                allowed="set to 0 or 1 if the context has only one vector, because half of it would be no vector",
                got=self.shared_length,
                remedy=f"Use --set {self.name}.shared_length=1, or a longer context",
            )
        if self.shared_length is not None and self.shared_length > M:
            raise ConfigError(
                where=f"{self.name}.shared_length",
                allowed=f"at most {M}, the context length",
                got=self.shared_length,
                remedy=f"Use --set {self.name}.shared_length={M} or less, or a longer context",
            )
        return M // 2 if self.shared_length is None else self.shared_length

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return [torch.cat([*params.shared.values(), *params.private.values()])]
