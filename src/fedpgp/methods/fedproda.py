"""Many averaged prompts, whose text features are taken for a normal distribution of each class."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Batch, Count, Factor, Frozen, Params, PromptMethod, logits


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedProDA(PromptMethod):
    """K shared prompts P [K, M, d], trained as ProDA's distribution of text features, and averaged (Lu et al. 2022).

    A step draws B of the K without replacement. With w_kc [D] the text features of those B, of unit length, their mean
    μ_c over k (not of unit length) and S_ij = 1/(B+1) Σ_k (w_ki − μ_i) ⊙ (w_kj − μ_j) [D], the logits of an image f of
    class y, with s = exp(logit scale), are those of an upper bound of the expected cross-entropy,

        s f·μ_c + s²/2 v_c,    v_c = Σ_d f_d² (S_yy + S_cc − 2 S_yc)_d.

    The term "orthogonality" is the mean of |cos| of the features of the B prompts without a class name, over their
    pairs. Prediction takes the mean feature of all K prompts, and no v.

    We could not read the authors' code: their repository announces it, but we found no file of it. The divisor B + 1
    and the defaults come from third parties' code. Third parties disagree about the weight of the orthogonality: 0.1 in
    one repository, 1.0 in FLiP, and none in BMIPRS, which leaves it out of the loss. Where we differ from their code:
    it goes through all prompts in turn, B at a time, and takes the orthogonality of all K; it mixes the places of the
    class name, a quarter of the prompts each with "front" and "middle", where all of our prompts have one place.
    Prompts that a step did not draw still move by momentum and weight decay. If the start is a phrase, the first prompt
    starts from its tokens and the others from these plus N(0, 0.02²), without which all would stay equal (ours).
    """

    name = "fedproda"
    source = "ProDA, Lu et al., CVPR 2022, arXiv 2205.03340, on each client, averaged as in PromptFL"
    year = 2022
    venue = "CVPR"
    context_names = ("global",)
    extra_names = ("",)

    prompts_learned: Count = Field(default=32, description="K, prompts in the distribution (third parties' code)")
    prompts_per_step: Count = Field(
        default=4, description="B, prompts drawn for a step; a variance needs two (third parties' code)"
    )
    orthogonality: Factor = Field(
        default=0.1,
        description="weight of the likeness of prompts without a class name (a third party's code; FLiP: 1.0)",
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        fewest = min(2, self.prompts_learned)
        if not fewest <= self.prompts_per_step <= self.prompts_learned:
            raise ConfigError(
                f"{self.name}.prompts_per_step must be {fewest} to prompts_learned = {self.prompts_learned}, got"
                f" {self.prompts_per_step}: prompts are drawn without replacement, and one of several has no variance"
                " and no orthogonality"
            )
        return {"P": self.new_prompts(self.prompts_learned, backbone, rng)}

    def for_step(self, params: Params, rng: torch.Generator) -> Params:
        drawn = torch.randperm(self.prompts_learned, generator=rng)[: self.prompts_per_step]
        return dataclasses.replace(params, shared={"P": params.shared["P"][drawn]})

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return list(params.shared["P"])

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        w, nameless = text[:, :-1], text[:, -1]
        bound = 0.5 * frozen.logit_scale.exp().square() * _variance(w, batch)
        task = F.cross_entropy(logits(w.mean(0), batch.features, frozen) + bound, batch.labels)
        pairs = len(w) * (len(w) - 1) / 2
        likeness = (nameless @ nameless.T).triu(1).abs().sum() / max(pairs, 1)
        return {"task": task, "orthogonality": self.orthogonality * likeness}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text.mean(0), images, frozen)

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return super().diagnostics(F.normalize(text.mean(0), dim=-1)[None], frozen)


def _variance(w: Tensor, batch: Batch) -> Tensor:
    """v [n, C]: the variance of f·(w_c − w_y) of n images. w: [B, C, D].

    Its parts are products over D, so that no [n, C, D] or [C, C, D] is made.
    """
    a, squares, labels = w - w.mean(0), batch.features.square(), batch.labels
    alone = squares @ a.square().sum(0).T
    both = torch.einsum("knd,kcd->nc", squares * a[:, labels], a)
    return (alone + alone.gather(1, labels[:, None]) - 2 * both) / (len(w) + 1)
