"""Prompts in several layers of both towers that stay close to CLIP. The server also averages them over rounds."""

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors, Upload
from fedpgp.methods.base import STRICT, Batch, Factor, Frozen, Params, logits
from fedpgp.methods.fedivlp import FedIVLP
from fedpgp.methods.templates import Guidance, Guided

MEAN = "mean."  # prefix of a parameter's name: its mean over rounds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GaussianMean(FedAvg):
    """FedAvg that also sends a weighted mean of its averages over the rounds.

    With θ_r the average after round r and w_r = exp(−(r − mean)² / 2 std²), the mean after round t is
    θ̄_t = Σ_(r ≤ t) w_r θ_r / Σ_(r ≤ t) w_r. Before the first round, it equals the initial parameters. `mean` and `std`
    are in rounds. The server remembers the means and the number of the last round.
    """

    name = "gaussian-mean"
    source = "PromptSRC, Khattak et al. 2023, ICCV, arXiv 2307.06948, section 3.2.2"

    mean: float
    std: float

    def begin(self, shared: Tensors, clients: int) -> Server:
        first = next(iter(shared.values()))
        means = {f"{MEAN}{name}": value for name, value in shared.items()}
        return Server(shared, {"round": torch.zeros((), dtype=torch.long, device=first.device), **means})

    def download(self, server: Server, client: int) -> Download:
        return Download({**server.shared, **{name: t for name, t in server.memory.items() if name != "round"}})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        averaged, number = super().aggregate(server, uploads).shared, server.memory["round"] + 1
        share = self.share(int(number))
        means = {f"{MEAN}{name}": torch.lerp(server.memory[f"{MEAN}{name}"], t, share) for name, t in averaged.items()}
        return Server(averaged, {"round": number, **means})

    def share(self, number: int) -> float:
        """Return w_t / Σ_(r ≤ t) w_r for round t = `number`, even if all weights underflow."""
        logarithms = [-(((r - self.mean) / self.std) ** 2) / 2 for r in range(1, number + 1)]
        largest = max(logarithms)
        return math.exp(logarithms[-1] - largest) / sum(math.exp(logarithm - largest) for logarithm in logarithms)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedPromptSRC(Guided, FedIVLP):
    """FedIVLP's prompts, kept close to the frozen CLIP, and their mean over rounds (PromptSRC, Khattak et al. 2023).

    With z [C, D] and f [B, D] the text and image features with prompts, f_0 the features of the frozen image tower, z_C
    the text features of many hand-written prompts, s = exp(logit scale), p = softmax(s f zᵀ) and q = softmax(s f_0
    z_Cᵀ), the loss is

        CE + λ_text mean |z − z_C| + λ_image mean |f − f_0| + λ_logits Σ q ln(q/p) / (B C).

    Each mean runs over all entries, and all features have unit length. The public code divides by B C instead of B, so
    the last term becomes smaller with more classes. z_C is a mean of features of unit length; in the public code the
    features are not normalized. Its templates are guidance = "ensemble-60".

    PromptSRC predicts with the mean of the prompts after each of its epochs e = 1 … E, weighted by a normal
    distribution, and continues training from the unaveraged prompts. The mean and standard deviation of the weights are
    15 ± 1 of E = 20 for base-to-novel, 30 ± 30 or 45 ± 5 of 50 for few-shot runs, and 6 ± 10 of 20 across datasets. In
    a federation, the server computes this mean of its averages over rounds instead of epochs, like FLiP's server. The
    mean and standard deviation are fractions of T, the number of rounds: the defaults 0.75 and 0.05 correspond to 15
    and 1 of 20. FLiP uses 15 and 1 rounds for any T.

    As in PromptSRC, training continues from the average instead of the mean; in FLiP it continues from the unfinished
    sum. After each round, the server sends the current mean in addition to the average, so bytes_down is twice as large
    as for FedIVLP. Clients predict with the mean and train from the average. If T is small, the standard deviation is
    shorter than a round, and one round has nearly all weight: with T = 5 and the defaults, round 4 has 98 %.
    """

    name = "fedpromptsrc"
    source = "PromptSRC, Khattak et al. 2023, arXiv 2307.06948, averaged"
    year = 2023
    venue = "ICCV"

    text_weight: Factor = Field(
        default=25.0, description="λ_text, weight of the distance of text features (public code)"
    )
    image_weight: Factor = Field(
        default=10.0, description="λ_image, weight of the distance of image features (public code)"
    )
    logits_weight: Factor = Field(default=1.0, description="λ_logits, weight of the distance of logits (public code)")
    guidance: Guidance = Field(
        default="ensemble",
        description='Hand-written prompts for z_C: "template" for "a photo of a {}.", "dataset" for the prompt of the'
        ' dataset, "ensemble" or "ensemble-60" for 7 or 60 prompts of CLIP',
    )
    gaussian: bool = Field(
        default=True, description="Predict with the mean over rounds; false: with the last round's average"
    )
    gaussian_mean: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="Round with the largest weight, as a fraction of federation.rounds (PromptSRC: epoch 15 of 20)",
    )
    gaussian_std: float = Field(
        default=0.05,
        ge=1e-3,
        le=10,
        description="Standard deviation of the weights, as a fraction of federation.rounds (PromptSRC: 1 of 20 epochs)",
    )

    def own_aggregator(self, rounds: int) -> Aggregator | None:
        if not self.gaussian:
            return None
        return GaussianMean(mean=self.gaussian_mean * rounds, std=self.gaussian_std * rounds)

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        z, seen = text[0], batch.features
        f_0, f = (seen[:, 0], seen[:, 1]) if seen.dim() == 3 else (seen, seen)
        prompted, taught = logits(z, f, frozen), logits(frozen.guidance, f_0, frozen)
        of_entries = F.kl_div(prompted.log_softmax(-1), taught.log_softmax(-1), reduction="none", log_target=True)
        return {
            "task": F.cross_entropy(prompted, batch.labels),
            "text": self.text_weight * (z - frozen.guidance).abs().mean(),
            "image": self.image_weight * (f - f_0).abs().mean(),
            "logits": self.logits_weight * of_entries.mean(),
        }

    def for_prediction(self, params: Params) -> Params:
        received = {name: params.received.get(f"{MEAN}{name}", value) for name, value in params.shared.items()}
        return dataclasses.replace(params, shared=received)
