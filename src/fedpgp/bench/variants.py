"""Variants of the library's step, its profile, and steps through a part of the image tower."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fedpgp.backbone import Backbone
from fedpgp.backbone.image import ImageEncoder, state_below
from fedpgp.backbone.layers import Adapter, Affine, Prompt
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.bench.machine import take_turns
from fedpgp.bench.names import imagenet_like
from fedpgp.bench.options import Bench
from fedpgp.bench.stages import differences, packed
from fedpgp.bench.step import Step, prepared
from fedpgp.federation.state import ClientState
from fedpgp.methods import Frozen, normal
from fedpgp.methods.fedcocoop import FedCoCoOp
from fedpgp.runtime.randomness import generator
from fedpgp.testing import made_up_images

CLASSES, BATCHES = (10, 25, 50), (1, 4, 8)  # numbers of classes and batch sizes of a step of FedCoCoOp

VECTORS, WIDTH = 4, 32  # vectors of a visual prompt; width of an adapter

# Kinds of operations, and words in the names of operations; the first kind with a matching word is taken.
KINDS = {
    "attention products": ("bmm", "scaled_dot_product"),
    "matrix multiplies": ("aten::mm", "addmm"),
    "softmax": ("softmax",),
    "norm": ("layer_norm",),
    "activation": ("gelu", "sigmoid", "aten::mul", "silu"),
    "copies": ("copy_", "aten::cat", "contiguous", "clone", "aten::index", "fill_", "zero_", "gather", "scatter"),
}
PROFILED = 3  # number of profiled steps


def measure_classes(bench: Bench) -> dict[str, Any]:
    """Measure a step with many ImageNet-like class names; `tokens` counts the tokens of all names, with EOS."""
    options = bench.options
    tokens = imagenet_like(options.classes, len(bench.step.scene.backbone.text.tokens), options.seed)
    step = with_classes(bench.step, tokens, options.seed)
    return {"classes": options.classes, "tokens": int((tokens.end + 1).sum()), **_figures(step, options.repeat)}


def measure_conditional(bench: Bench) -> list[dict[str, Any]]:
    """Measure a local step of FedCoCoOp, in which each image has its own context.

    Returns a row for each number of classes in the softmax and of images in the batch.
    """
    scene, method, rows = bench.step.scene, FedCoCoOp(), []
    start = method.init_shared(scene.task, scene.backbone, generator(0, "shared"))
    for classes in CLASSES:
        names = [scene.task.class_names[label] for label in scene.task.base[:classes]]
        step = with_classes(bench.step, scene.backbone.class_tokens(names, method.tail), 0)
        for size in BATCHES:
            images, labels = made_up_images(size, scene.backbone, None, 1), torch.arange(size) % classes
            job = replace(step.job, method=method, start=start, own=ClientState(), images=images, labels=labels)
            figures = _figures(replace(step, job=job), bench.options.repeat)
            rows.append({"classes": classes, "batch": size, **figures})
    return rows


def with_classes(step: Step, tokens: ClassTokens, seed: int) -> Step:
    """Return the step with other class names in the softmax and random guidance."""
    count, backbone = len(tokens), step.scene.backbone
    guidance = made_up_images(count, backbone, None, seed).pooled
    frozen = Frozen(guidance, backbone.logit_scale, torch.arange(count))
    return replace(step, job=replace(step.job, classes=tokens, frozen=frozen, labels=step.job.labels % count))


def _figures(step: Step, repeat: int) -> Mapping[str, Any]:
    return take_turns({"step": partial(packed, prepared(step))}, repeat)["step"].figures


def measure_bf16(bench: Bench) -> dict[str, Any]:
    """Measure a step with matrix products in bfloat16 and the same step in float32.

    Returns
    -------
    dict
        `single`, `coarse`: seconds of the step in float32 and with products in bfloat16, by repetition. The keys of
        `differences`, which are not compared with a tolerance.
    """
    step, backbone = bench.step, bench.step.scene.backbone
    text = TextEncoder.of(step.scene.model, backbone.tokenizer.bos_token_id, torch.bfloat16)
    coarse = prepared(replace(step, scene=replace(step.scene, backbone=replace(backbone, text=text))))
    works = {"single": partial(packed, step), "coarse": partial(packed, coarse)}
    measured = take_turns(works, bench.options.repeat)
    seconds = {name: side.seconds for name, side in measured.items()}
    return {**seconds, **differences(measured["coarse"].result, measured["single"].result)}


def profile_step(bench: Bench) -> dict[str, Any]:
    """Profile a step: `seconds` of one step, and `shares` of this time by kind of operation.

    The time outside of operations belongs to Python and the dispatcher, including the profiler.
    """
    step = bench.step
    packed(step)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        for _ in range(PROFILED):
            packed(step)
        wall = time.perf_counter() - started
    busy: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = str(event.key)
        if name.startswith("aten::"):
            busy[_kind(name)] += event.self_cpu_time_total / 1e6
    shares = {kind: busy[kind] / wall for kind in (*KINDS, "other")}
    return {"seconds": wall / PROFILED, "shares": {**shares, "Python and dispatch": 1 - sum(shares.values())}}


def _kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def measure_depths(bench: Bench) -> list[dict[str, Any]]:
    """Measure a forward and backward pass of a batch through the image tower, which is trained from a layer upwards.

    From the first layer, visual prompts in every layer are trained; from other layers, adapters.

    Returns
    -------
    list
        For each layer a dictionary with these keys. `layer`. `pixels`, `state`: seconds from the pixels and from the
        cached state below the layer, by repetition. `frozen`: seconds of a forward pass of the whole frozen tower, by
        repetition. `saved`: share of the time of that pass that the cached state saves. `below`: share of its
        operations below the layer, with which `saved` is compared. `flops`: operations from the state.
    """
    rng, layers = generator(0, "depth"), bench.step.scene.backbone.image.layers
    quarters = sorted({layers * quarter // 4 for quarter in range(4)})
    return [_measure_depth(bench, layer, rng) for layer in quarters]


def _measure_depth(bench: Bench, layer: int, rng: torch.Generator) -> dict[str, Any]:
    backbone, pixels = bench.step.scene.backbone, bench.step.pixels
    encoder, prompt = backbone.image, _prompt(backbone, layer, rng)
    assert isinstance(encoder, ImageEncoder), "published shapes are CLIPs"

    def below() -> Tensor:
        return encoder.encode(pixels, state_below(layer)).clone()

    def train(state: Tensor) -> None:
        (features,) = encoder.tower.each(state, [prompt], layer)
        features.sum().backward()

    works: dict[str, Callable[[], object]] = {
        "pixels": lambda: train(below()),
        "state": partial(train, below()),
        "frozen": partial(encoder.encode, pixels),
    }
    measured = take_turns(works, bench.options.repeat)
    seconds = {name: side.seconds for name, side in measured.items()}
    operations = {name: side.operations.total for name, side in measured.items()}
    times = zip(*seconds.values(), strict=True)
    return {
        "layer": layer,
        **seconds,
        "below": (operations["pixels"] - operations["state"]) / operations["frozen"],
        "flops": operations["state"],
        "saved": median((from_pixels - from_state) / frozen for from_pixels, from_state, frozen in times),
    }


def _prompt(backbone: Backbone, layer: int, rng: torch.Generator) -> Prompt:
    encoder = backbone.image
    w = encoder.token_width

    def drawn(*shape: int) -> Tensor:
        return normal(rng, *shape).to(backbone.logit_scale).requires_grad_()

    def affine(outputs: int, inputs: int) -> Affine:
        return Affine(drawn(outputs, inputs), drawn(outputs))

    if layer == 0:
        return Prompt(drawn(VECTORS, w), drawn(encoder.layers - 1, VECTORS, w))
    adapters = {
        number: Adapter(affine(WIDTH, w), affine(WIDTH, WIDTH), affine(w, WIDTH), 0.1)
        for number in range(layer, encoder.layers)
    }
    return Prompt(drawn(0, w), None, adapters)
