"""One local step of one client: as public code does it, and then with one trick after the other.

Every stage has the tricks of those before it. The image encoder goes first, so that what comes after compares the text
side with the text side. Every stage computes the same loss and the same gradients, or the benchmark stops.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.aggregators import Download, FedAvg
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.bench.machine import first_call, seconds
from fedpgp.bench.naive import Naive, make_naive, read, see
from fedpgp.bench.shapes import BATCH, CLIENTS, Scene
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import FedPGPError
from fedpgp.federation.client import ClientJob, LocalTraining, in_groups, train_clients
from fedpgp.federation.client_runner import frozen_of
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import ClientState
from fedpgp.methods import Batch, Frozen, Params
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.randomness import generator

if TYPE_CHECKING:
    from transformers import CLIPModel

# Of loss and gradients, relative. In float32 transformers differs from itself, cut at EOS, by 1.0e-5 (AVX512).
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}
RATE = 512.0  # a power of two: parameters before and after one step of SGD give its gradient without rounding


class DifferentWorkError(FedPGPError):
    """Two sides of the benchmark did not compute the same."""


@dataclass(frozen=True)
class Step:
    """What a step needs; images: features [B, D] of the pixels [B, 3, side, side]; tokens and frozen: of C classes."""

    scene: Scene
    method: FedPGP
    params: Params
    pixels: Tensor
    images: Tensor
    labels: Tensor
    tokens: ClassTokens
    frozen: Frozen
    naive: Naive

    @property
    def values(self) -> dict[str, Tensor]:
        """p_G, U and V as new leaves."""
        together = {**self.params.shared, **self.params.private}
        return {name: value.detach().clone().requires_grad_() for name, value in together.items()}


@dataclass(frozen=True)
class Outcome:
    """loss: []; gradients: by parameter."""

    loss: Tensor
    gradients: Mapping[str, Tensor]


def first_step(scene: Scene, seed: int) -> Step:
    """Client 0's first batch with the method's first parameters and all base classes."""
    backbone, task, method = scene.backbone, scene.task, FedPGP()
    names = [task.class_names[label] for label in task.base]
    chosen = torch.from_numpy(task.clients[0].train)[:BATCH]
    columns = {label: column for column, label in enumerate(task.base)}
    pixels = scene.pixels["train"] if scene.made_up else scene.pixels["train"][chosen]
    with torch.no_grad():
        images = see(scene.model, pixels)
    return Step(
        scene=scene,
        method=method,
        params=Params(
            method.init_shared(task, backbone, generator(seed, "shared")),
            method.init_private(task, backbone, generator(seed, "private"), 0),
        ),
        pixels=pixels,
        images=images,
        labels=torch.tensor([columns[label] for label in task.train.labels[chosen].tolist()]),
        tokens=backbone.class_tokens(names),
        frozen=frozen_of(method, task, backbone).select(task.base),
        naive=make_naive(backbone, scene.model, names, method.context_length, method.mu, method.tau),
    )


def naive(step: Step) -> Outcome:
    values = step.values
    return _backward(step.naive.loss(values, see(step.scene.model, step.pixels), step.labels), values)


def cached_features(step: Step) -> Outcome:
    values = step.values
    return _backward(step.naive.loss(values, step.images, step.labels), values)


def fewer_passes(step: Step) -> Outcome:
    return _with_text(
        step, lambda contexts: torch.stack([read(step.scene.model, step.naive.prompt, c) for c in contexts])
    )


def cut_at_eos(step: Step) -> Outcome:
    short = step.naive.prompt.cut()
    return _with_text(step, lambda contexts: torch.stack([read(step.scene.model, short, c) for c in contexts]))


def shared_prefix(step: Step) -> Outcome:
    start = step.scene.backbone.tokenizer.bos_token_id
    return _with_text(step, lambda contexts: read_shared(step.scene.model, contexts, step.tokens, start))


def packed(step: Step) -> Outcome:
    return _with_text(step, lambda contexts: step.scene.backbone.text(contexts, step.tokens))


def batched_clients(step: Step) -> Outcome:
    """One step of ten clients, each with a private part and a batch of its own: the first one's outcome."""
    towers = step.scene.backbone.towers()
    updates = [update for group in client_groups(step) for update in train_clients(towers, group)]
    after = {**updates[0].upload.shared, **updates[0].own.private}
    return Outcome(
        torch.tensor(math.fsum(updates[0].losses.values()), dtype=torch.float64),
        {name: (value.detach() - after[name]) / RATE for name, value in step.values.items()},
    )


def client_groups(step: Step) -> list[Sequence[ClientJob]]:
    """Those clients in the groups in which the library trains them; plain SGD, so that a step shows its gradient."""
    method = replace(step.method, learning_rate=RATE, private_learning_rate=None)
    settings = FederationConfig(local_epochs=1, batch_size=BATCH, momentum=0.0, weight_decay=0.0)
    jobs = [
        ClientJob(
            method=method,
            aggregator=FedAvg(),
            start=step.params.shared,
            download=Download(step.params.shared),
            own=ClientState({name: value * (1 + client / 8) for name, value in step.params.private.items()}),
            images=ImageFeatures(step.images.roll(client, dims=1)),
            labels=step.labels,
            classes=step.tokens,
            frozen=step.frozen,
            training=LocalTraining.of(method, settings),
            seed=0,
            round=1,
            client=client,
        )
        for client in range(CLIENTS)
    ]
    return in_groups(step.scene.backbone.towers(), jobs)


@dataclass(frozen=True)
class BenchStage:
    """steps: client steps in one call."""

    name: str
    what: str
    call: Callable[[Step], Outcome]
    steps: int = 1


STAGES = (
    BenchStage("naive", "four text passes of whole sequences, image encoder in the step", naive),
    BenchStage("cached features", "each image encoded once, before the first round", cached_features),
    BenchStage("fewer passes", "z_C once per task, no pass for U V alone", fewer_passes),
    BenchStage("cut at EOS", "sequences as long as the longest, not as long as the checkpoint reads", cut_at_eos),
    BenchStage("shared prefix", "[SOS] and the context once per prompt, not once per class", shared_prefix),
    BenchStage("packed", "the library's encoder: no padding, last layer at EOS only, what never changes once", packed),
    BenchStage(
        "batched clients",
        "the library's local training: several clients as one batch, SGD included",
        batched_clients,
        CLIENTS,
    ),
)


@dataclass(frozen=True)
class Measured:
    """seconds: of one client step, by repetition; memory: bytes that the process grew by in the first call at most.

    Differences are relative to naive's: of the loss, and of the gradients to the largest entry of each.
    """

    name: str
    what: str
    seconds: Sequence[float]
    memory: int | None
    loss_difference: float
    gradient_difference: float


def measure(step: Step, precision: str, repeat: int, say: Callable[[str], None]) -> list[Measured]:
    """Times all stages one after the other, `repeat` times over, so that a slower spell of the machine meets all.

    Raises DifferentWorkError where a stage's loss or gradients are not naive's.
    """
    times: dict[str, list[float]] = {stage.name: [] for stage in STAGES}
    memory: dict[str, int | None] = {}
    outcomes: dict[str, Outcome] = {}
    for turn in range(repeat):
        for stage in STAGES:
            say(f"step: {stage.name}, {turn + 1} of {repeat}")
            call = partial(stage.call, step)
            if turn == 0:
                outcomes[stage.name], memory[stage.name], elapsed = first_call(call)
                check(stage.name, outcomes[stage.name], outcomes["naive"], TOLERANCE[precision])
            else:
                elapsed = seconds(call)
            times[stage.name].append(elapsed / stage.steps)
    return [
        Measured(
            stage.name,
            stage.what,
            times[stage.name],
            memory[stage.name],
            *differences(outcomes[stage.name], outcomes["naive"]),
        )
        for stage in STAGES
    ]


def differences(mine: Outcome, reference: Outcome) -> tuple[float, float]:
    """The relative difference of the losses, and the largest of the gradients' over the largest entry of each."""
    loss = abs(mine.loss - reference.loss) / abs(reference.loss)
    gradients = [
        (mine.gradients[name] - gradient).abs().max() / gradient.abs().max()
        for name, gradient in reference.gradients.items()
    ]
    return loss.item(), torch.stack(gradients).max().item()


def check(name: str, mine: Outcome, reference: Outcome, tolerance: float) -> None:
    """Raises DifferentWorkError where they differ by more, or are not numbers."""
    loss, gradient = differences(mine, reference)
    if not (loss <= tolerance and gradient <= tolerance):
        raise DifferentWorkError(
            f"{name!r} must compute what 'naive' does to {tolerance:g}, its loss differs by {loss:.1e} and its"
            f" gradients by {gradient:.1e}: the times would compare different work;"
            " please report this with your machine's name"
        )


def _with_text(step: Step, text: Callable[[Tensor], Tensor]) -> Outcome:
    values = step.values
    params = Params({"p_G": values["p_G"]}, {"U": values["U"], "V": values["V"]})
    batch = Batch(step.images, step.labels)
    contexts = torch.stack(list(step.method.prompts(params, step.frozen)))
    terms = step.method.loss(params, text(contexts), batch, step.frozen)
    return _backward(torch.stack(list(terms.values())).sum(), values)


def _backward(loss: Tensor, values: Mapping[str, Tensor]) -> Outcome:
    gradients = torch.autograd.grad(loss, list(values.values()))
    return Outcome(loss.detach(), dict(zip(values, gradients, strict=True)))


def read_shared(model: "CLIPModel", contexts: Tensor, tokens: ClassTokens, start: int) -> Tensor:
    """Contexts [K, M, d] -> text features [K, C, D]: a shared prefix, class tokens padded, every layer in full."""
    tower = model.text_model
    embed, place = tower.embeddings.token_embedding, tower.embeddings.position_embedding.weight
    K, P, T = len(contexts), 1 + contexts.shape[1], tokens.ids.shape[1]
    prefix = torch.cat([embed(torch.tensor([start])).expand(K, 1, -1), contexts], dim=1) + place[:P]
    suffix = (embed(tokens.ids) + place[P : P + T]).expand(K, -1, -1, -1)  # [K, C, T, d]
    allowed = torch.cat([torch.ones(T, P, dtype=torch.bool), torch.ones(T, T, dtype=torch.bool).tril()], dim=1)
    for layer in tower.encoder.layers:
        attention = layer.self_attn

        def heads(x: Tensor, attention: torch.nn.Module = attention) -> Tensor:
            return x.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)

        p, s = layer.layer_norm1(prefix), layer.layer_norm1(suffix)
        q_p, k_p, v_p = (heads(part(p)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        q_s, k_s, v_s = (heads(part(s)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        above = torch.ones(P, P, dtype=torch.bool).triu(1)
        of_prefix = torch.softmax((q_p @ k_p.mT * attention.scale).masked_fill(above, -torch.inf), dim=-1) @ v_p
        seen = torch.cat([q_s @ k_p.mT[:, None], q_s @ k_s.mT], dim=-1) * attention.scale
        weight_p, weight_s = torch.softmax(seen.masked_fill(~allowed, -torch.inf), dim=-1).split([P, T], dim=-1)
        of_suffix = weight_p @ v_p[:, None] + weight_s @ v_s
        prefix = prefix + attention.out_proj(of_prefix.transpose(-3, -2).flatten(-2))
        suffix = suffix + attention.out_proj(of_suffix.transpose(-3, -2).flatten(-2))
        prefix = prefix + layer.mlp(layer.layer_norm2(prefix))
        suffix = suffix + layer.mlp(layer.layer_norm2(suffix))
    ends = suffix[:, torch.arange(len(tokens)), tokens.end]
    return F.normalize(model.text_projection(tower.final_layer_norm(ends)), dim=-1)
