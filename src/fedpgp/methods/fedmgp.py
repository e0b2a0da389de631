"""Several groups on each client, each with a text and a visual prompt. Some groups are drawn, sent and averaged."""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Batch, Count, Factor, Frozen, Params, Reads, normal
from fedpgp.methods.deep import PhraseMethod


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedMGP(PhraseMethod):
    """Several groups of a text and a visual prompt on each client, some of which are sent (Bo et al. 2025).

    A client has G groups, each with a text prompt [M, d] and a visual prompt [m, w]. It sends s of them. With T_j [C,
    D] the text features and I_j [B, D] the image features of group j, of unit length, and t = exp(logit scale), the
    loss is

        1/G Σ_j CE(t I_j T_jᵀ) + λ · (L(T) + L(I)) / 2,    L(Z) = mean over the pairs i < j of mean_n cos(Z_in, Z_jn),

    where n runs over the classes or the images. If m = 0, L(T) replaces the mean of both; if G = 1, L is 0. Prediction
    uses the mean of the G logits.

    After its epochs, a client draws s of its G groups without replacement: uniformly the first time, later with
    probabilities softmax_j(max_i S_ji / τ). S_ji is the similarity of the client's group j and group i of the s groups
    that the server sent: the mean of the cosine of their text prompts and the cosine of their visual prompts, with each
    prompt flattened to one vector. The i-th drawn group goes into slot i, and the server averages each slot over the
    clients. The average that comes back replaces the drawn group. All other groups stay on the client.

    The paper compares whole groups by a cosine, for which we had no formula: the mean of the two cosines is our choice.
    The public code draws text and visual prompts separately, each by its own cosines and with the same random numbers.
    After the first round it may therefore send the text prompt of one group with the visual prompt of another.

    Parameters: "text_G" [s, M, d] and "visual_G" [s, m, w] are the slots. "text" [G, M, d] and "visual" [G, m, w] are
    the client's own groups, with zeros for a group that is in a slot. "places" [s, G] has a 1 at (i, j) if slot i holds
    group j, and only zeros before a client's first round. With m = 0, the image tower reads no prompts. A client
    without a private part predicts with the s groups in the slots.

    The sign of L is the paper's: it pushes the groups apart. We read the public code but did not run it. There, an
    absolute value and a sign make all three distances (the default is L1) pull the groups together, and the learned
    values of the visual prompts are lost before each round and each prediction; here they are kept. The public code
    does not weight the average. The paper weights it by the number of images; here, `weighting` of the aggregator
    decides. The paper's text has a cosine in L, and its appendix reports the best results with L1. We had the words of
    the paper but not its equations, so the means in L and the max over i follow the public code.

    A client that did not take part in a round also uses the newest slots if it has drawn groups before; in the paper,
    its groups do not change. A client's first draw is uniform in any round (ours).
    """

    name = "fedmgp"
    source = "Bo et al. 2025, NeurIPS, arXiv 2511.00480"
    year = 2025
    venue = "NeurIPS"

    groups: Count = Field(default=5, description="G, number of groups of each client (paper, public code)")
    selected: Count = Field(default=2, description="s, number of groups that a client sends (paper, public code)")
    context_length: Count = Field(default=2, description="M, number of vectors of a text prompt (paper, public code)")
    visual_length: int = Field(
        default=2,
        ge=0,
        le=1024,
        description="m, number of vectors of a visual prompt (paper, public code); 0: only text prompts",
    )
    diversity: Factor = Field(
        default=1.0, description="λ, weight of the similarity of the groups in the loss (paper, public code)"
    )
    temperature: float = Field(
        default=1.0,
        ge=0.01,
        le=1e6,
        description="τ, temperature of the draw; high: uniform, low: the most similar groups (paper)",
    )
    noise: float = Field(
        default=0.01,
        ge=0,
        le=1e3,
        description="Standard deviation of the initial text prompts around the phrase (public code)",
    )

    @property
    def reads(self) -> tuple[Reads, ...]:
        return ("text", "image tower" if self.visual_length else "images")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        if self.selected > self.groups:
            raise ConfigError(
                where=f"{self.name}.selected",
                allowed=f"at most {self.groups}, the value of {self.name}.groups",
                got=self.selected,
                remedy=f"Use --set {self.name}.selected={self.groups} or less, or raise {self.name}.groups",
            )
        return {f"{kind}_G": prompts[: self.selected].clone() for kind, prompts in self._first(backbone, rng).items()}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        nowhere = torch.zeros(self.selected, self.groups).to(backbone.logit_scale)
        return self._first(backbone, rng) | {"places": nowhere}

    def _first(self, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """Return G initial prompts of each kind."""
        text = torch.stack([self.new_context(backbone, rng) for _ in range(self.groups)])
        first = {"text": text + self.noise * torch.randn(*text.shape, generator=rng).to(text)}
        if self.visual_length:
            first["visual"] = normal(rng, self.groups, self.visual_length, backbone.image.token_width).to(text)
        return first

    def _in_effect(self, params: Params, kind: str) -> Tensor:
        """Return the prompts of all groups [G, …], or without a private part the prompts in the slots."""
        slots = params.shared[f"{kind}_G"]
        if not params.private:
            return slots
        places = params.private["places"].detach()  # not trained, but drawn
        own = (1 - places.sum(0))[:, None, None] * params.private[kind]
        return own + torch.einsum("sg,smd->gmd", places, slots)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor]:
        return list(self._in_effect(params, "text"))

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        return [Prompt(vectors) for vectors in self._in_effect(params, "visual")] if self.visual_length else []

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        of_groups = self._logits(text, batch.features, frozen)
        likeness = [_likeness(text)]
        if self.visual_length:
            likeness.append(_likeness(batch.features[:, 1:].transpose(0, 1)))
        return {
            "task": F.cross_entropy(of_groups.flatten(0, 1), batch.labels.repeat(len(of_groups))),
            "diversity": self.diversity * torch.stack(likeness).mean(),
        }

    def after_training(self, params: Params, rng: torch.Generator) -> Params:
        kinds = ("text", "visual") if self.visual_length else ("text",)
        groups = {kind: self._in_effect(params, kind) for kind in kinds}
        weights = torch.ones(self.groups, dtype=torch.float64)
        if params.private["places"].any():
            cosines = [_cosines(prompts, params.received[f"{kind}_G"]) for kind, prompts in groups.items()]
            nearest = torch.stack(cosines).mean(0).amax(1)
            # In float64 on the CPU, so that all precisions and devices use the same random numbers.
            weights = (nearest.to("cpu", torch.float64) / self.temperature).softmax(0)
        drawn = torch.multinomial(weights, self.selected, generator=rng).to(groups["text"].device)
        shared = {f"{kind}_G": prompts[drawn] for kind, prompts in groups.items()}
        # A group in a slot has zeros among the client's own groups.
        private = {kind: prompts.index_fill(0, drawn, 0) for kind, prompts in groups.items()}
        private["places"] = F.one_hot(drawn, self.groups).to(groups["text"])
        return dataclasses.replace(params, shared=shared, private=private)

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return self._logits(text, images, frozen).mean(0)

    def _logits(self, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        """Return logits [G, B, C] for text features [G, C, D] and image features [B, 1 + V, D] or [B, D]."""
        seen = images[:, 1:] if self.visual_length else images[:, None].expand(-1, len(text), -1)
        return frozen.logit_scale.exp() * torch.einsum("bgd,gcd->gbc", seen, text)

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {})


def _cosines(prompts: Tensor, sent: Tensor) -> Tensor:
    """Return the cosines [G, s] of prompts [G, M, d] and prompts [s, M, d], each flattened to one vector."""
    return F.cosine_similarity(prompts.flatten(1)[:, None], sent.flatten(1), dim=-1)


def _likeness(features: Tensor) -> Tensor:
    """Return L, the mean cosine over pairs of groups, or 0 for one group. features: [G, n, D] of unit length."""
    G, n = features.shape[:2]
    cosines = torch.einsum("ind,jnd->ij", features, features) / n
    return cosines.triu(1).sum() / max(1, G * (G - 1) // 2)
