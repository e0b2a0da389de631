"""The benchmark: its parts, one after the other in one process, and what they found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

import fedpgp
from fedpgp.bench import flops, scaling
from fedpgp.bench.bf16 import measure_bf16
from fedpgp.bench.costs import FORGOTTEN, PARTICIPANTS, measure_costs
from fedpgp.bench.depth import BATCHES, CLASSES, measure_conditional, measure_depths
from fedpgp.bench.machine import first_call, gemm_speed, machine, seconds, threads
from fedpgp.bench.names import imagenet_like
from fedpgp.bench.profile import profile_step
from fedpgp.bench.recipe import measure_recipe
from fedpgp.bench.rounds import count_calls, measure_round
from fedpgp.bench.shapes import BATCH, SHAPES, random_features, scene
from fedpgp.bench.stages import TOLERANCE, Measured, Step, client_groups, first_step, measure, packed
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods import METHODS, Batch, Frozen, Params
from fedpgp.methods.plugins import find_method

PARTS = ("step", "round", "scaling", "classes", "bf16", "profile", "recipe", "methods", "depth", "conditional")
# Of the machine's matrix-multiply speed, for an estimate.
USUAL_SPEED = 0.6
RECIPE_SEEDS = 3


@dataclass(frozen=True)
class Options:
    """What to measure. repeat: of every timing; classes: names in the part of that name; methods: none means all."""

    shape: str
    parts: Sequence[str]
    repeat: int
    threads: int
    seed: int
    precision: str
    classes: int
    methods: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"shape must be a known one, got {self.shape!r}; {nearest(self.shape, SHAPES)}")
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"parts must be known ones, got {part!r}; {nearest(part, PARTS)}")
        if self.precision not in TOLERANCE:
            raise ConfigError(f"precision must be one of {', '.join(TOLERANCE)}, got {self.precision!r}")
        if "bf16" in self.parts and self.precision != "float32":
            raise ConfigError(
                f"precision must be float32 for the part bf16, which is held against it, got {self.precision!r}"
            )
        for name in ("repeat", "threads", "classes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")
        for method in self.methods:
            find_method(method)


def run_suite(options: Options, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measures the parts asked for; say: hears what is going on. Returns what `fedpgp bench --json` prints.

    Raises DifferentWorkError where the two sides of a comparison did not compute the same.
    """
    with threads(options.threads):
        subject = scene(options.shape, options.precision, options.seed)
        step = first_step(subject, options.seed)
        say(f"about {_estimate(options, step):.0f} minutes")
        result: dict[str, Any] = {
            "version": fedpgp.__version__,
            "options": asdict(options),
            "machine": machine(options.threads),
            "task": subject.task.name,
        }
        naive_step = None
        if "step" in options.parts:
            stages = measure(step, options.precision, options.repeat, say)
            naive_step = median(stages[0].seconds)
            result["step"] = _steps(stages) | {"speed": _speed(step, stages, options.threads)}
        if "round" in options.parts:
            figures = measure_round(
                step, naive_step, options.precision, options.seed, options.threads, options.repeat, say
            )
            result["round"] = asdict(figures) | {"ours": figures.ours, "ratios": figures.ratios}
        if "classes" in options.parts:
            say(f"{options.classes} classes")
            result["classes"] = _many_classes(step, options)
        if "bf16" in options.parts:
            say("bf16")
            result["bf16"] = asdict(measure_bf16(step, options.repeat))
        if "profile" in options.parts:
            say("profile")
            result["profile"] = asdict(profile_step(lambda: packed(step)))
        if "methods" in options.parts:
            chosen = [find_method(name) for name in options.methods or METHODS]
            costs = measure_costs(subject, chosen, options.seed, options.repeat, say)
            result["methods"] = [asdict(cost) | {"step": cost.step} for cost in costs]
        if "depth" in options.parts:
            say("depth")
            depths = measure_depths(subject, options.repeat)
            result["depth"] = [asdict(one) | {"saved": one.saved} for one in depths]
        if "conditional" in options.parts:
            say("conditional")
            result["conditional"] = [asdict(one) for one in measure_conditional(subject, options.repeat)]
    if "scaling" in options.parts:
        say(f"clients: {', '.join(map(str, scaling.CLIENTS))}")
        result["scaling"] = [asdict(s) for s in scaling.sweep(scaling.CLIENTS, options.seed, options.threads)]
    if "recipe" in options.parts:
        measured = measure_recipe(RECIPE_SEEDS, say)
        result["recipe"] = asdict(measured) | {"shares": measured.shares}
    return result


def _steps(stages: Sequence[Measured]) -> dict[str, Any]:
    """The stages with their ratios: medians over the repetitions of ratios within one repetition."""
    rows = []
    for i, stage in enumerate(stages):
        before = stages[max(0, i - 1)]
        rows.append(
            asdict(stage)
            | {
                "to_naive": _ratio(stages[0].seconds, stage.seconds),
                "to_previous": _ratio(before.seconds, stage.seconds),
            }
        )
    return {"stages": rows}


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _speed(step: Step, stages: Sequence[Measured], count: int) -> dict[str, Any]:
    """The operations of a step, and the share of this machine's matrix-multiply speed that the library reaches."""
    dtype = step.images.dtype
    group = max(len(jobs) for jobs in client_groups(step))
    one, many = library_count(step, 1), library_count(step, group)
    single, batched = stages[-2], stages[-1]
    at_shapes, wide = (gemm_speed(of.products, dtype, count) for of in (one, many))
    return {
        "flops": one.total,
        "flops_linear": one.linear,
        "flops_attention": one.attention,
        "naive_flops": naive_count(step),
        "gemm": at_shapes,
        "gemm_one_thread": at_shapes if count == 1 else gemm_speed(one.products, dtype, 1),
        "gemm_batched": wide,
        "share": one.total / median(single.seconds) / at_shapes,
        "share_batched": one.total / median(batched.seconds) / wide,
        "batched": group,
    }


def library_count(step: Step, clients: int) -> flops.Count:
    """Operations of one step of so many clients together."""
    config = step.scene.config.text_config
    prompts = clients * len(step.method.prompts(step.params, step.frozen))
    return flops.packed(config, prompts, step.method.context_length, (step.tokens.end + 1).tolist())


def naive_count(step: Step) -> int:
    """Operations of one naive step: four passes forward, two of them backward, and the images of a batch."""
    config = step.scene.config
    C, L = step.naive.prompt.ids.shape
    text = flops.padded(config.text_config, C, L, forward=4, backward=2)
    return text.total + len(step.images) * flops.image(config.vision_config, config.projection_dim)


def _many_classes(step: Step, options: Options) -> dict[str, Any]:
    """A step's text side and loss, forward and backward, with many class names of ImageNet's lengths."""
    config, like = step.scene.config, step.images
    tokens = imagenet_like(options.classes, config.text_config.vocab_size, options.seed)
    guidance = random_features(options.classes, like, config.projection_dim, options.seed)
    frozen = Frozen(guidance, step.frozen.logit_scale, torch.arange(options.classes))
    batch = Batch(step.images, step.labels % options.classes)

    def call() -> None:
        values = step.values
        params = Params({"p_G": values["p_G"]}, {"U": values["U"], "V": values["V"]})
        contexts = torch.stack(list(step.method.prompts(params, frozen)))
        terms = step.method.loss(params, step.scene.backbone.text(contexts, tokens), batch, frozen)
        torch.stack(list(terms.values())).sum().backward()

    _, memory, first = first_call(call)
    count = flops.packed(
        config.text_config,
        len(step.method.prompts(step.params, step.frozen)),
        step.method.context_length,
        (tokens.end + 1).tolist(),
    )
    return {
        "classes": options.classes,
        "tokens": int((tokens.end + 1).sum()),
        "seconds": [first, *(seconds(call) for _ in range(options.repeat - 1))],
        "memory": memory,
        "flops": count.total,
    }


def _estimate(options: Options, step: Step) -> float:
    """Minutes that the parts will take, from counted operations and the speed of a quick matrix product."""
    subject, config = step.scene, step.scene.config
    speed = USUAL_SPEED * gemm_speed([flops.Product(512, 512, 2048, 1)], step.images.dtype, options.threads)
    naive, ours = naive_count(step), library_count(step, 1).total
    C, L = step.naive.prompt.ids.shape
    passes = flops.padded(config.text_config, C, L, forward=1, backward=0).total
    image = flops.image(config.vision_config, config.projection_dim)
    calls = count_calls(subject.task)
    work = dict.fromkeys(PARTS, 0.0)
    work["step"] = options.repeat * 2.9 * naive
    work["round"] = calls.steps * ours + options.repeat * (passes + BATCH * image)
    if not subject.made_up:
        images = calls.images + subject.images
        work["round"] += calls.steps * naive + images * image + calls.text_passes * passes
    work["classes"] = options.repeat * options.classes / C * ours
    work["bf16"] = (options.repeat + 1) * ours * 9  # where it is slow
    work["profile"] = 4 * ours
    steps = PARTICIPANTS[subject.made_up] * math.ceil(len(subject.task.clients[0].train) / BATCH)
    work["methods"] = len(options.methods or METHODS) * (FORGOTTEN + 2 * options.repeat) * steps * ours
    work["depth"] = 4 * options.repeat * 4 * BATCH * image
    work["conditional"] = options.repeat * ours / C * sum(CLASSES) * sum(BATCHES)
    return (
        sum(work[part] for part in options.parts) / speed / 60
        + 1.0 * ("scaling" in options.parts)
        + 1.5 * ("recipe" in options.parts)
    )
