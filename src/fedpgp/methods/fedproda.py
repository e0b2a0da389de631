"""Many averaged prompts, whose text features are modelled as one normal distribution for each class."""

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
    """K shared prompts P [K, M, d], trained as in ProDA's distribution of text features (Lu et al. 2022).

    A step draws B of the K prompts without replacement. Let w_kc [D] be the text feature of class c with the drawn
    prompt k, of unit length, μ_c the mean of w_kc over k (not of unit length), and
    S_ij = 1/(B+1) Σ_k (w_ki − μ_i) ⊙ (w_kj − μ_j) [D]. For an image f of class y, with s = exp(logit scale), an upper
    bound of the expected cross-entropy has the logits

        s f·μ_c + s²/2 v_c,    v_c = Σ_d f_d² (S_yy + S_cc − 2 S_yc)_d.

    The term "orthogonality" is the mean of |cos| over all pairs of the B drawn prompts, computed from their text
    features without a class name. Prediction uses the mean feature of all K prompts, without v.

    We could not read the authors' code: their repository announces it but contains no file of it. The divisor B + 1 and
    the defaults come from the code of third parties. They disagree about the weight of the orthogonality: 0.1 in one
    repository, 1.0 in FLiP, and none in BMIPRS, which omits the term. Our differences from their code: their code takes
    all prompts in turn, B at a time, and computes the orthogonality over all K prompts; and it mixes the positions of
    the class name ("front" and "middle" for a quarter of the prompts each), whereas our prompts all have the same
    position. Momentum and weight decay also move the prompts that a step did not draw. If the initial context is a
    phrase, the first prompt starts from its tokens, and the others from the same tokens plus N(0, 0.02²), because equal
    prompts would stay equal (ours).
    """

    name = "fedproda"
    source = "ProDA, Lu et al., CVPR 2022, arXiv 2205.03340, on each client, averaged as in PromptFL"
    year = 2022
    venue = "CVPR"
    context_names = ("global",)
    extra_names = ("",)

    prompts_learned: Count = Field(
        default=32, description="K, number of prompts in the distribution (third parties' code)"
    )
    prompts_per_step: Count = Field(
        default=4,
        description="B, number of prompts drawn for a step; the variance needs at least two (third parties' code)",
    )
    orthogonality: Factor = Field(
        default=0.1,
        description="Weight of the similarity of prompts without a class name (a third party's code; FLiP: 1.0)",
    )

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        fewest, most = min(2, self.prompts_learned), self.prompts_learned
        if not fewest <= self.prompts_per_step <= most:
            allowed = f"{fewest} to {most}" if fewest < most else str(fewest)
            raise ConfigError(
                where=f"{self.name}.prompts_per_step",
                allowed=f"{allowed}, because {self.name}.prompts_learned is {most}",
                got=self.prompts_per_step,
                remedy=f"Use --set {self.name}.prompts_per_step={min(max(self.prompts_per_step, fewest), most)}",
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
    """Return v [n, C], the variance of f·(w_c − w_y) for n images. w: [B, C, D].

    It is computed from products over D, without tensors [n, C, D] or [C, C, D].
    """
    a, squares, labels = w - w.mean(0), batch.features.square(), batch.labels
    own = squares @ a.square().sum(0).T
    cross = torch.einsum("knd,kcd->nc", squares * a[:, labels], a)
    return (own + own.gather(1, labels[:, None]) - 2 * cross) / (len(w) + 1)
