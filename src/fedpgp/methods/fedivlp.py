"""Prompts in several layers of both towers, which do not depend on each other, averaged."""

from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.data.tasks import Task
from fedpgp.methods.base import STRICT, Params, Reads
from fedpgp.methods.deep import DeepPhraseMethod, first_visual, prompt_of


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

    name = "fedivlp"
    source = "baseline of MaPLe and PromptSRC, Khattak et al. 2023, arXiv 2210.03117 and 2307.06948, averaged"
    year = 2023
    venue = "CVPR"

    visual_length: int = Field(
        default=4, ge=0, le=1024, description="m, vectors of a layer's visual prompt; 0: none (PromptSRC's repository)"
    )

    @property
    def reads(self) -> tuple[Reads, ...]:
        return ("deep text", "image tower" if self.visual_length else "images")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        first = self.new_text(backbone, rng)
        if self.visual_length:
            first |= first_visual(self.name, self.visual_length, self.depth, backbone, rng)
        return first

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "visual")] if self.visual_length else []
