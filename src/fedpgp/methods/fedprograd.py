"""One averaged prompt whose gradient never contradicts zero-shot CLIP."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Batch, Frozen, Params, logits
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.templates import AuthorsGuidance, Guided


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedProGrad(Guided, PromptFL):
    """PromptFL with ProGrad's gradient, which does not contradict zero-shot CLIP (Zhu et al. 2023).

    The method computes two gradients of the prompt: a = ∇CE, and b, the gradient of T² · KL(q ‖ r) scaled to unit
    length. q and r are the softmax of the logits over T for the hand-written and the learned prompt. The optimizer
    follows

        G = a                  if ⟨a, b⟩ ≥ 0,
        G = a − λ ⟨a, b⟩ b     if a and b conflict,

    with each parameter as one vector. The term "distillation" is therefore recorded but not minimised: it only changes
    the direction of the gradient of "task". Some public federations of ProGrad add the two terms instead, which is
    plain distillation.

    The authors' code has its own hand-written prompts for OxfordPets, OxfordFlowers, FGVCAircraft, Food101 and DTD;
    guidance = "authors" selects them, and the dataset's prompt for other datasets. With ctx_init = "authors", the
    initial context is the authors': zeros, followed by the words of the hand-written prompt. As in their code, the
    number of tokens taken is the number of words of the prompt, so a prompt with a comma loses its last word.
    """

    name = "fedprograd"
    source = "ProGrad, Zhu et al., ICCV 2023, arXiv 2205.14865, on each client, averaged as in PromptFL"
    year = 2023
    venue = "ICCV"

    strength: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="λ, share of a conflict that is removed (authors' script; their README: 0.8 for some datasets)",
    )
    temperature: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="T, temperature of the softmax of zero-shot CLIP and of the prompt (authors' code)",
    )
    guidance: AuthorsGuidance = "template"
    ctx_init: str = Field(
        default="random",
        min_length=1,
        description='Initial context: "random" for N(0, 0.02²), a phrase, or "authors" for zeros followed by the words'
        " of the hand-written prompt",
    )

    def new_contexts(self, task: Task, backbone: Backbone, rng: torch.Generator) -> Tensor:
        if self.ctx_init != "authors":
            return super().new_contexts(task, backbone, rng)
        words = self.templates(task)[0].split(" {}")[0]
        tokens = backbone.phrase(words)[: len(words.split())]
        if len(tokens) > self.context_length:
            raise ConfigError(
                where=f"{self.name}.context_length",
                allowed=f"at least {len(tokens)}, the number of tokens of {words!r}",
                got=self.context_length,
                remedy=f"Use --set {self.name}.context_length={len(tokens)} or more",
            )
        context = torch.zeros(self.context_length, backbone.token_width).to(tokens)
        context[-len(tokens) :] = tokens
        return torch.stack([context for _ in task.base]) if self.class_specific else context

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        teacher, student = (
            F.log_softmax(logits(features, batch.features, frozen) / self.temperature, dim=-1)
            for features in (frozen.guidance, text[0])
        )
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return {**super().loss(params, text, batch, frozen), "distillation": self.temperature**2 * divergence}

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        turned = {}
        for name, a in gradients["task"].items():
            b = F.normalize(gradients["distillation"][name].flatten(), dim=0)  # zeros stay zeros
            turned[name] = a - self.strength * (a.flatten() @ b).clamp(max=0) * b.view_as(a)
        return turned
