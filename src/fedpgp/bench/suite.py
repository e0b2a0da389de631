"""The benchmark: it runs its parts one after the other in one process."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.benchmark import set_torch_threads

import fedpgp
from fedpgp.bench import variants
from fedpgp.bench.costs import FORGOTTEN, PARTICIPANTS, measure_costs
from fedpgp.bench.general import CLASSES, measure_general
from fedpgp.bench.machine import gemm_speed, machine
from fedpgp.bench.naive import count_calls
from fedpgp.bench.options import PARTS, Bench, Options
from fedpgp.bench.recipe import measure_recipe
from fedpgp.bench.rounds import measure_round
from fedpgp.bench.scaling import measure_scaling
from fedpgp.bench.shapes import BATCH, scene
from fedpgp.bench.stages import measure_stages
from fedpgp.bench.step import Step, first_step
from fedpgp.methods import METHODS

# Share of the speed of matrix products that the estimate of the time assumes.
USUAL_SPEED = 0.6


MEASURES: dict[str, Callable[[Bench], Any]] = {
    "step": measure_stages,
    "round": measure_round,
    "scaling": measure_scaling,
    "classes": variants.measure_classes,
    "general": measure_general,
    "bf16": variants.measure_bf16,
    "profile": variants.profile_step,
    "recipe": measure_recipe,
    "methods": measure_costs,
    "depth": variants.measure_depths,
    "conditional": variants.measure_conditional,
}


def run_suite(options: Options, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure the chosen parts, and return the object that `fedpgp bench --json` prints.

    Parameters
    ----------
    options
        Options of the benchmark.
    say
        Function that is called with progress texts.

    Raises
    ------
    DifferentWorkError
        If two sides of a comparison did not compute the same.
    """
    with set_torch_threads(options.threads):
        subject = scene(options.shape, options.precision, options.seed)
        step = first_step(subject, options.seed)
        say(f"about {_estimate(options, step):.0f} minutes")
        result: dict[str, Any] = {
            "version": fedpgp.__version__,
            "options": asdict(options),
            "machine": machine(options.threads),
            "task": subject.task.name,
        }
        for part in PARTS:
            if part in options.parts:
                say(part)
                result[part] = MEASURES[part](Bench(options, step, say, result))
    return result


def _estimate(options: Options, step: Step) -> float:
    """Estimate the minutes of the parts from rough numbers of operations and the speed of a short matrix product.

    A forward pass takes two operations for each weight and row, and a backward pass the same number.
    """
    subject, model, text = step.scene, step.scene.model, step.scene.backbone.text
    speed = USUAL_SPEED * gemm_speed({(512, 512, 2048): 1}, step.pixels.dtype, options.threads)

    def forward(tower: torch.nn.Module, rows: int) -> int:
        return 2 * rows * sum(weight.numel() for weight in tower.parameters())

    _, contexts = step.contexts(step.values)
    passes = forward(model.text_model.encoder, step.naive.prompt.ids.numel())
    image = forward(model.vision_model.encoder, 1 + subject.backbone.image.patches)
    ours = 2 * forward(model.text_model.encoder, len(contexts) * text.rows(contexts[0], step.job.classes))
    naive = 6 * passes + BATCH * image
    C, calls = len(step.job.classes), count_calls(subject.task)
    round_work = calls["steps"] * ours + options.repeat * (passes + BATCH * image)
    if not subject.made_up:
        images = calls["images"] + subject.images
        round_work += calls["steps"] * naive + images * image + calls["text_passes"] * passes
    steps = PARTICIPANTS[subject.made_up] * math.ceil(len(subject.task.clients[0].train) / BATCH)
    work = {
        "step": options.repeat * 2.9 * naive,
        "round": round_work,
        "classes": options.repeat * options.classes / C * ours,
        "general": 24 * options.repeat * passes * CLASSES / C,
        "bf16": (options.repeat + 1) * ours * 9,  # on processors with slow bfloat16
        "profile": 4 * ours,
        "methods": len(options.methods or METHODS) * (FORGOTTEN + 2 * options.repeat) * steps * ours,
        "depth": 4 * options.repeat * 4 * BATCH * image,
        "conditional": options.repeat * ours / C * sum(variants.CLASSES) * sum(variants.BATCHES),
    }
    minutes = {"scaling": 1.0, "recipe": 1.5} | {part: operations / speed / 60 for part, operations in work.items()}
    return sum(minutes[part] for part in options.parts)
