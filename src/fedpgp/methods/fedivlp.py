"""Independent prompts in several layers of both towers. The server averages them."""

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
    """Independent prompts of both towers: the baseline IVLP of MaPLe and PromptSRC (Khattak et al. 2023).

    IVLP stands for independent vision-language prompting. Text: P_1 … P_J [M, d] replace the first M tokens after [SOS]
    at layers 1 … J. Image: V_1 … V_J [m, w] follow the patches, as in FedVPT. The parameter "visual" is V_1;
    "visual_deeper" is V_2 … V_J. The logits are exp(logit scale) times the cosine of the text and image features, and
    the loss is the cross-entropy.

    Two configurations are public: M = m = 4 and J = 9 in PromptSRC's repository, our default; M = m = 2 and J = 12 in
    MaPLe's repository, where the words "of a" stay fixed in front of the class name, as here with context_length = 2.
    All vectors are averaged, as in FedMGP's code, which has M = m = 2 and J = 1 and can also average the vectors of
    only one tower. With visual_length = 0 and depth = 1, this method equals PromptFL.
    """

    name = "fedivlp"
    source = "baseline of MaPLe and PromptSRC, Khattak et al. 2023, arXiv 2210.03117 and 2307.06948, averaged"
    year = 2023
    venue = "CVPR"

    visual_length: int = Field(
        default=4,
        ge=0,
        le=1024,
        description="m, number of vectors of a layer's visual prompt; 0: no visual prompt (PromptSRC's repository)",
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
