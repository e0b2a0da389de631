"""One averaged prompt whose gradient never works against zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.methods.base import STRICT, Batch, Frozen, Guidance, Params, logits, templates_of
from fedpgp.methods.promptfl import PromptFL

if TYPE_CHECKING:
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedProGrad(PromptFL):
    """PromptFL with ProGrad's gradient, in which nothing contradicts zero-shot CLIP (Zhu et al. 2023).

    Two gradients of the prompt are taken: a = ∇CE, and that of T² · KL(q ‖ r), of unit length b, where q and r are the
    softmax of the hand-written and of the learned prompt's logits over T. The optimizer follows

        G = a                  where ⟨a, b⟩ ≥ 0,
        G = a − λ ⟨a, b⟩ b     where they conflict,

    over each parameter as one vector. So the term "distillation" is recorded but not minimised: it only turns the
    gradient of "task". Some public federations of ProGrad add the two terms instead, which is plain distillation.

    The authors' code has its own hand-written prompts. guidance = "dataset" takes the same prompts for Caltech101,
    StanfordCars, SUN397, UCF101, EuroSAT and ImageNet. The authors' prompts differ for OxfordPets, OxfordFlowers,
    FGVCAircraft and Food101 ("a type of pet, a photo of a {}.") and for DTD ("a texture of {}."); data.template sets
    them. The first context of the authors' code is zeros, with the tokens of the dataset's prompt in the last places;
    that start is not available here.
    """

    name: ClassVar[str] = "fedprograd"
    source: ClassVar[str] = "ProGrad, Zhu et al., ICCV 2023, arXiv 2205.14865, on each client, averaged as in PromptFL"
    year: ClassVar[int] = 2023
    venue: ClassVar[str] = "ICCV"
    turns_gradient: ClassVar[bool] = True

    strength: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="λ, the share of a conflict that is taken out (authors' script; README: 0.8 for some datasets)",
    )
    temperature: float = Field(
        default=1.0, ge=1e-6, le=1e6, description="T of zero-shot CLIP's and the prompt's softmax (authors' code)"
    )
    guidance: Guidance = Field(
        default="template",
        description='z_C: "template" (ours), "dataset" (authors\' code, except five datasets) or "ensemble"',
    )

    def templates(self, task: Task) -> Sequence[str]:
        return templates_of(self.guidance, task)

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        teacher, student = (
            F.log_softmax(logits(features, batch.images, frozen) / self.temperature, dim=-1)
            for features in (frozen.guidance, text[0])
        )
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return {**super().loss(params, text, batch, frozen), "distillation": self.temperature**2 * divergence}

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        found = {}
        for name, a in gradients["task"].items():
            b = F.normalize(gradients["distillation"][name].flatten(), dim=0)  # zeros stay zeros
            found[name] = a - self.strength * (a.flatten() @ b).clamp(max=0) * b.view_as(a)
        return found
