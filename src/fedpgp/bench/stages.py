"""One local step of one client: as in public code, and then with one optimization after the other.

Every stage includes the optimizations of the preceding stages. The image encoder is removed first, so that later stages
differ only in text encoding. If a stage computes another loss or other gradients, the benchmark stops.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone.tokens import ClassTokens
from fedpgp.bench.machine import Measurement, gemm_speed, ratio, take_turns
from fedpgp.bench.naive import Sequences, read, see
from fedpgp.bench.options import TOLERANCE, Bench
from fedpgp.bench.shapes import CLIENTS
from fedpgp.bench.step import RATE, Outcome, Step, backward
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import FedPGPError
from fedpgp.federation.client import ClientJob, in_groups, train_clients
from fedpgp.federation.state import ClientState

if TYPE_CHECKING:
    from transformers import CLIPModel


REMEDY = "Report this as a bug of fedpgp, with the name of your processor"


class DifferentWorkError(FedPGPError):
    """Two sides of the benchmark that did not compute the same."""


def naive(step: Step) -> Outcome:
    values = step.values
    return backward(step.naive.loss(values, see(step.scene.model, step.pixels), step.job.labels), values)


def cached_features(step: Step) -> Outcome:
    values = step.values
    return backward(step.naive.loss(values, step.job.images.pooled, step.job.labels), values)


def fewer_passes(step: Step) -> Outcome:
    return _each_context(step, step.naive.prompt)


def cut_at_eos(step: Step) -> Outcome:
    whole = step.naive.prompt
    return _each_context(step, whole.select(range(len(whole))))


def _each_context(step: Step, sequences: Sequences) -> Outcome:
    return step.outcome(lambda contexts: torch.stack([read(step.scene.model, sequences, c) for c in contexts]))


def shared_prefix(step: Step) -> Outcome:
    start = step.scene.backbone.tokenizer.bos_token_id
    return step.outcome(lambda contexts: read_shared(step.scene.model, contexts, step.job.classes, start))


def packed(step: Step) -> Outcome:
    return step.outcome(lambda contexts: step.scene.backbone.text(contexts, step.job.classes))


def batched_clients(step: Step) -> Outcome:
    """Train ten clients, each with its own private part and batch, for one step; return the outcome of the first."""
    towers = step.scene.backbone.towers()
    updates = [update for group in client_groups(step) for update in train_clients(towers, group)]
    after = {**updates[0].upload.shared, **updates[0].own.private}
    return Outcome(
        torch.tensor(math.fsum(updates[0].losses.values()), dtype=torch.float64),
        {name: (value.detach() - after[name]) / RATE for name, value in step.values.items()},
    )


def client_groups(step: Step) -> list[Sequence[ClientJob]]:
    """Return jobs of ten clients in the groups in which the library trains them."""
    job = step.job
    jobs = [
        replace(
            job,
            own=ClientState({name: value * (1 + client / 8) for name, value in job.own.private.items()}),
            images=ImageFeatures(job.images.pooled.roll(client, dims=1)),
            client=client,
        )
        for client in range(CLIENTS)
    ]
    return in_groups(step.scene.backbone.towers(), jobs)


class Stage(NamedTuple):
    """Stage of the benchmark.

    Attributes
    ----------
    what
        What is new in the stage.
    call
        Function that does a step.
    steps
        Number of client steps in one call.
    """

    what: str
    call: Callable[[Step], Outcome]
    steps: int = 1


STAGES = {
    "naive": Stage("four text passes of whole sequences; the image encoder runs in the step", naive),
    "cached features": Stage("each image is encoded once, before the first round", cached_features),
    "fewer passes": Stage("z_C is computed once per task; no pass for U V without p_G", fewer_passes),
    "cut at EOS": Stage("sequences have the length of the longest, not the full length of the checkpoint", cut_at_eos),
    "shared prefix": Stage("[SOS] and the context are computed once per prompt, not once per class", shared_prefix),
    "packed": Stage("encoder of the library: no padding, last layer only at EOS, constants computed once", packed),
    "batched clients": Stage(
        "local training of the library: several clients as one batch, including SGD", batched_clients, CLIENTS
    ),
}


def measure_stages(bench: Bench) -> dict[str, Any]:
    """Measure all stages; return the rows of `compare_stages` as `stages`, and the result of `_speed` as `speed`."""
    rows, measured = compare_stages(bench, "step", STAGES, bench.step)
    return {"stages": rows, "speed": _speed(bench.step, measured, bench.options.threads)}


def compare_stages(
    bench: Bench, part: str, stages: Mapping[str, Stage], step: Step
) -> tuple[list[dict[str, Any]], dict[str, Measurement[Outcome]]]:
    """Measure stages in alternating order, and check that each computes the same as the stage "naive".

    Parameters
    ----------
    bench
        Input of the part.
    part
        Name of the part, for progress texts.
    stages
        Stages by name; the first is "naive".
    step
        The step that is measured.

    Returns
    -------
    tuple
        A row for each stage, and the measurements. A row has the name, what is new, the seconds of a step of one
        client, the memory of the first call, the `differences` from the naive outcome, and the ratios of the times of
        the naive and of the preceding stage to the time of this stage.

    Raises
    ------
    DifferentWorkError
        If the loss or the gradients of a stage differ from the naive stage.
    """
    tolerance = TOLERANCE[bench.options.precision]
    outcomes: dict[str, Outcome] = {}

    def check_outcome(name: str, outcome: Outcome) -> None:
        outcomes[name] = outcome
        check(name, outcome, outcomes["naive"], tolerance)

    works = {name: partial(stage.call, step) for name, stage in stages.items()}
    measured = take_turns(works, bench.options.repeat, lambda text: bench.say(f"{part}: {text}"), check_outcome)
    seconds = {name: [taken / stage.steps for taken in measured[name].seconds] for name, stage in stages.items()}
    before = dict(zip(stages, ["naive", *stages], strict=False))
    rows = [
        {
            "name": name,
            "what": stage.what,
            "seconds": seconds[name],
            "memory": measured[name].memory,
            **differences(outcomes[name], outcomes["naive"]),
            "to_naive": ratio(seconds["naive"], seconds[name]),
            "to_previous": ratio(seconds[before[name]], seconds[name]),
        }
        for name, stage in stages.items()
    ]
    return rows, measured


def _speed(step: Step, measured: Mapping[str, Measurement[Outcome]], threads: int) -> dict[str, Any]:
    """Return the operations of a packed step and of a naive step, and the speed of torch.mm at their shapes.

    gemm, gemm_one_thread, gemm_batched: operations per second of torch.mm at the shapes of the products with weights.
    share, share_batched: fraction of this speed that the products reach over the whole time of the step. batched:
    number of clients in the largest group.
    """
    single, batched = measured["packed"], measured["batched clients"]
    one, many, dtype = single.operations, batched.operations, step.pixels.dtype
    at_shapes, wide = (gemm_speed(operations.products, dtype, threads) for operations in (one, many))
    return {
        "flops": one.total,
        "flops_linear": one.linear,
        "flops_attention": one.total - one.linear,
        "naive_flops": measured["naive"].operations.total,
        "gemm": at_shapes,
        "gemm_one_thread": at_shapes if threads == 1 else gemm_speed(one.products, dtype, 1),
        "gemm_batched": wide,
        "share": one.linear / median(single.seconds) / at_shapes,
        "share_batched": many.linear / median(batched.seconds) / wide,
        "batched": max(len(jobs) for jobs in client_groups(step)),
    }


def differences(mine: Outcome, reference: Outcome) -> dict[str, float]:
    """Return the relative difference of the losses, and the largest relative difference of a gradient."""
    loss = abs(mine.loss - reference.loss) / abs(reference.loss)
    gradients = [
        (mine.gradients[name] - gradient).abs().max() / gradient.abs().max()
        for name, gradient in reference.gradients.items()
    ]
    return {"loss_difference": loss.item(), "gradient_difference": torch.stack(gradients).max().item()}


def check(name: str, mine: Outcome, reference: Outcome, tolerance: float) -> None:
    """Raise DifferentWorkError if two outcomes differ by more than the tolerance, or are not numbers."""
    loss, gradient = differences(mine, reference).values()
    if not (loss <= tolerance and gradient <= tolerance):
        raise DifferentWorkError(
            f"the results differ from the stage 'naive' (loss by {loss:.1e}, gradients by {gradient:.1e}) by more than"
            f" {tolerance:g}, so the times cannot be compared",
            where=f"stage {name!r}",
            remedy=REMEDY,
        )


def read_shared(model: "CLIPModel", contexts: Tensor, tokens: ClassTokens, start: int) -> Tensor:
    """Return text features [K, C, D] of contexts [K, M, d]: shared prefix, padded class tokens, every layer in full."""
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
