"""One averaged prompt whose gradient never works against zero-shot CLIP."""

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
    """PromptFL with ProGrad's gradient, in which nothing contradicts zero-shot CLIP (Zhu et al. 2023).

    Two gradients of the prompt are taken: a = ∇CE, and that of T² · KL(q ‖ r), of unit length b, where q and r are the
    softmax of the hand-written and of the learned prompt's logits over T. The optimizer follows

        G = a                  where ⟨a, b⟩ ≥ 0,
        G = a − λ ⟨a, b⟩ b     where they conflict,

    over each parameter as one vector. So the term "distillation" is recorded but not minimised: it only turns the
    gradient of "task". Some public federations of ProGrad add the two terms instead, which is plain distillation.

    The authors' code has hand-written prompts of its own for OxfordPets, OxfordFlowers, FGVCAircraft, Food101 and DTD,
    which guidance = "authors" takes; for other datasets it takes the dataset's. Their first context, ctx_init =
    "authors", is zeros with the words of that prompt in the last places. As in their code, as many tokens are taken as
    the prompt has words, so that one with a comma loses its last word.
    """

    name = "fedprograd"
    source = "ProGrad, Zhu et al., ICCV 2023, arXiv 2205.14865, on each client, averaged as in PromptFL"
    year = 2023
    venue = "ICCV"

    strength: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="λ, the share of a conflict that is taken out (authors' script; README: 0.8 for some datasets)",
    )
    temperature: float = Field(
        default=1.0, ge=1e-6, le=1e6, description="T of zero-shot CLIP's and the prompt's softmax (authors' code)"
    )
    guidance: AuthorsGuidance = "template"
    ctx_init: str = Field(
        default="random",
        min_length=1,
        description='first: "random", N(0, 0.02²), a phrase, or "authors": zeros, with the words of guidance last',
    )

    def new_contexts(self, task: Task, backbone: Backbone, rng: torch.Generator) -> Tensor:
        if self.ctx_init != "authors":
            return super().new_contexts(task, backbone, rng)
        words = self.templates(task)[0].split(" {}")[0]
        tokens = backbone.phrase(words)[: len(words.split())]
        if len(tokens) > self.context_length:
            raise ConfigError(
                f"{self.name}.context_length must be at least {len(tokens)} for {words!r}, got {self.context_length}"
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
