"""Prompts in several layers of both towers, which do not depend on each other, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone.layers import Prompt
from fedpgp.methods.base import STRICT, Params, Reads, normal
from fedpgp.methods.deep import DeepPhraseMethod, check_depth, first_prompt, prompt_of

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.data.tasks import Task


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedIVLP(DeepPhraseMethod):
    """Independent prompts of text and image tower, trained together on the cross-entropy: the baseline "independent
    vision-language prompting" of MaPLe and PromptSRC (Khattak et al. 2023).

    Text: P_1 … P_J [M, d], at each layer in the place of the first M tokens behind [SOS]. Image: V_1 … V_J [m, w],
    behind the patches, as in FedVPT. V_1 is "visual", the others "visual_deeper". The logits are exp(logit scale) times
    the cosine of the features that both towers give.

    Two configurations are public: M = m = 4, J = 9 in PromptSRC's repository, our default, and M = m = 2, J = 12 in
    MaPLe's, where the words "of a" stay fixed in front of the class name, as they do here with context_length = 2. All
    vectors are averaged, as in FedMGP's code, which has M = m = 2 and J = 1 and can also average the vectors of one
    tower only. With visual_length = 0 and depth = 1 this is PromptFL.
    """

    name: ClassVar[str] = "fedivlp"
    source: ClassVar[str] = (
        "baseline of MaPLe and PromptSRC, Khattak et al. 2023, arXiv 2210.03117 and 2307.06948, averaged"
    )
    year: ClassVar[int] = 2023
    venue: ClassVar[str] = "CVPR"

    visual_length: int = Field(
        default=4, ge=0, le=1024, description="m, vectors of a layer's visual prompt; 0: none (PromptSRC's repository)"
    )

    @property
    def reads(self) -> tuple[Reads, ...]:
        return ("deep text", "image tower" if self.visual_length else "images")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        first = self.new_text(backbone, rng)
        if self.visual_length:
            check_depth(self.name, self.depth, "image", backbone.image.layers)
            vectors = normal(rng, self.visual_length, backbone.image.token_width).to(backbone.logit_scale)
            first |= first_prompt("visual", vectors, self.depth, rng)
        return first

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "visual")] if self.visual_length else []
