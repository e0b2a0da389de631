"""Several groups of a text and a visual prompt on each client, of which some are drawn, sent and averaged."""

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
    """Each client has G groups j of a text prompt [M, d] and a visual one [m, w], and sends s of them (Bo et al. 2025).

    With T_j [C, D] the text features and I_j [B, D] the image features of group j, of unit length, and t = exp(logit
    scale), the loss is

        1/G Σ_j CE(t I_j T_jᵀ) + λ · (L(T) + L(I)) / 2,    L(Z) = mean over the pairs i < j of mean_n cos(Z_in, Z_jn),

    n over classes or images; L(T) alone where m = 0, and 0 where G = 1. Prediction takes the mean of the G logits.

    After its epochs a client draws s of its G groups without replacement: at first uniformly, later with probabilities
    softmax_j(max_i S_ji / τ). S_ji is the similarity of its group j and of group i of the s that the server had sent:
    the mean of the cosine of their text prompts and of the cosine of their visual prompts, each prompt's numbers as one
    vector. The i-th drawn goes into the i-th slot, which the server averages over clients; what comes back takes the
    place of the group that was drawn. All others stay with the client.

    The paper compares whole groups by a cosine, for which we had no formula: the mean of both kinds' cosines is our
    choice. The public code draws text and visual prompts separately, each by their own cosines and with the same random
    numbers. After the first round it may send the text prompt of one group with the visual prompt of another.

    Parameters: "text_G" [s, M, d] and "visual_G" [s, m, w] are the slots; "text" [G, M, d] and "visual" [G, m, w] the
    client's own groups, zero where one is in a slot; "places" [s, G] has a 1 where a slot's group stands, none before a
    client's first round. With m = 0 no image is read with a prompt. The shared part alone predicts with the s groups in
    its slots.

    The sign of L is the paper's, which pushes groups apart. In the public code, which we read and did not run, an
    absolute value and a sign make all three of its distances, of which L1 is the default, pull them together; and what
    visual prompts learn is lost before each round and each prediction, where here it stays. It does not weigh the
    average, the paper does, by images: the aggregator's `weighting`. The paper's text has a cosine in L, its appendix
    the best results with L1. We had its words and not its equations: the means in L and the max over i are those of the
    public code.

    Clients that took no part in a round see the newest slots, too, where they have drawn before; in the paper they stay
    as they were. A client's first draw is uniform in whatever round it is (ours).
    """

    name = "fedmgp"
    source = "Bo et al. 2025, NeurIPS, arXiv 2511.00480"
    year = 2025
    venue = "NeurIPS"

    groups: Count = Field(default=5, description="G, groups of each client (paper, public code)")
    selected: Count = Field(default=2, description="s, groups that a client sends (paper, public code)")
    context_length: Count = Field(default=2, description="M, vectors of a text prompt (paper, public code)")
    visual_length: int = Field(
        default=2,
        ge=0,
        le=1024,
        description="m, vectors of a visual prompt (paper, public code); 0: text alone",
    )
    diversity: Factor = Field(default=1.0, description="λ, weight of the likeness of groups (paper, public code)")
    temperature: float = Field(
        default=1.0, ge=0.01, le=1e6, description="τ, of the draw; high: uniform, low: the most similar (paper)"
    )
    noise: float = Field(
        default=0.01, ge=0, le=1e3, description="standard deviation about the first text prompt (public code)"
    )

    @property
    def reads(self) -> tuple[Reads, ...]:
        return ("text", "image tower" if self.visual_length else "images")

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        if self.selected > self.groups:
            raise ConfigError(
                f"{self.name}.selected must be at most groups, {self.groups}, got {self.selected}:"
                " they are drawn without replacement"
            )
        return {f"{kind}_G": prompts[: self.selected].clone() for kind, prompts in self._first(backbone, rng).items()}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        nowhere = torch.zeros(self.selected, self.groups).to(backbone.logit_scale)
        return self._first(backbone, rng) | {"places": nowhere}

    def _first(self, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """G first prompts of each kind."""
        text = torch.stack([self.new_context(backbone, rng) for _ in range(self.groups)])
        first = {"text": text + self.noise * torch.randn(*text.shape, generator=rng).to(text)}
        if self.visual_length:
            first["visual"] = normal(rng, self.groups, self.visual_length, backbone.image.token_width).to(text)
        return first

    def _in_effect(self, params: Params, kind: str) -> Tensor:
        """The prompts of all groups [G, …]; without a private part, those in the slots."""
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
            # In float64 on the CPU, where every precision and every device draws from the same random numbers.
            weights = (nearest.to("cpu", torch.float64) / self.temperature).softmax(0)
        drawn = torch.multinomial(weights, self.selected, generator=rng).to(groups["text"].device)
        shared = {f"{kind}_G": prompts[drawn] for kind, prompts in groups.items()}
        # What is sent is kept nowhere else.
        private = {kind: prompts.index_fill(0, drawn, 0) for kind, prompts in groups.items()}
        private["places"] = F.one_hot(drawn, self.groups).to(groups["text"])
        return dataclasses.replace(params, shared=shared, private=private)

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return self._logits(text, images, frozen).mean(0)

    def _logits(self, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        """[G, B, C] of text features [G, C, D] and images [B, 1 + V, D], or [B, D]."""
        seen = images[:, 1:] if self.visual_length else images[:, None].expand(-1, len(text), -1)
        return frozen.logit_scale.exp() * torch.einsum("bgd,gcd->gbc", seen, text)

    def without_private(self, params: Params) -> Params:
        return Params(params.shared, {})


def _cosines(prompts: Tensor, sent: Tensor) -> Tensor:
    """The cosines [G, s] of prompts [G, M, d] and of prompts [s, M, d], each as one vector."""
    return F.cosine_similarity(prompts.flatten(1)[:, None], sent.flatten(1), dim=-1)


def _likeness(features: Tensor) -> Tensor:
    """L: the mean cosine over pairs of groups, 0 of a single one. features: [G, n, D] of unit length."""
    G, n = features.shape[:2]
    cosines = torch.einsum("ind,jnd->ij", features, features) / n
    return cosines.triu(1).sum() / max(1, G * (G - 1) // 2)
