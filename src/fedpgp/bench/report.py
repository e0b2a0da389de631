"""The benchmark's tables."""

from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MEBI = 2**20


def tables(result: Mapping[str, Any]) -> Group:
    """Everything that was measured, ratios first; result: of `run_suite`."""
    parts: list[RenderableType] = [_heading(result)]
    for name, show in (
        ("step", _step),
        ("round", _round),
        ("classes", _classes),
        ("bf16", _bf16),
        ("profile", _profile),
        ("scaling", _scaling),
        ("recipe", _recipe),
        ("methods", _methods),
        ("depth", _depth),
        ("conditional", _conditional),
    ):
        if name in result:
            parts += ["", *show(result[name])]
    return Group(*parts)


def _heading(result: Mapping[str, Any]) -> Text:
    options, machine = result["options"], result["machine"]
    return Text(
        f"{options['shape']}, {options['precision']}, {result['task']}\n"
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} of {machine['cores']} cores,"
        f" PyTorch {machine['torch']}, transformers {machine['transformers']}"
    )


def _step(step: Mapping[str, Any]) -> list[RenderableType]:
    listing = _table("stage", "seconds", "to naive", "to the one before", "MiB", "Δ loss", "Δ gradients")
    for stage in step["stages"]:
        listing.add_row(
            stage["name"],
            f"{median(stage['seconds']):.4g}",
            f"{stage['to_naive']:.2f}×",
            f"{stage['to_previous']:.2f}×",
            _mebibytes(stage["memory"]),
            f"{stage['loss_difference']:.0e}",
            f"{stage['gradient_difference']:.0e}",
        )
    speed = step["speed"]
    text = Text(
        f"A step of the library needs {speed['flops'] / 1e9:.2f} GFLOP ({speed['flops_linear'] / speed['flops']:.0%}"
        f" in products with weights), naive {speed['naive_flops'] / 1e9:.2f}.\n"
        f"torch.mm at the step's shapes: {speed['gemm'] / 1e9:.1f} GFLOP/s"
        f" ({speed['gemm_one_thread'] / 1e9:.1f} on one thread); the step reaches {speed['share']:.0%} of it,"
        f" {speed['batched']} clients at once {speed['share_batched']:.0%} of {speed['gemm_batched'] / 1e9:.1f}."
    )
    return [Text("One local step of one client"), listing, text]


def _round(figures: Mapping[str, Any]) -> list[RenderableType]:
    calls, units = figures["calls"], figures["units"]
    listing = _table("naive over ours", "ratio")
    for name, ratio in figures["ratios"].items():
        listing.add_row(name, f"{ratio:.1f}×")
    how = (
        f"measured, and ends with the same p_G (Δ {figures['parameters_differ']:.0e})"
        f" and {figures['answers_differ']} test images that only one side gets right"
        if figures["naive_measured"]
        else (
            "not run: computed from units measured in this run,"
            f" {calls['steps']} steps of {units['step']:.3g} s + {calls['images']} images of {units['image']:.3g} s"
            f" + {calls['text_passes']} text passes of {units['text pass']:.3g} s"
        )
    )
    text = Text(
        f"naive: {figures['naive']:.4g} s, {how}\n"
        f"ours: {figures['ours']:.4g} s measured, {figures['ours_training']:.3g} in training and"
        f" {figures['ours_evaluation']:.3g} in evaluation; encoding {figures['images_encoded']} images once:"
        f" {figures['encoding']:.4g} s\n"
        f"memory: {_mebibytes(figures['memory'])} MiB; all clients: {figures['bytes_up'] / 1024:.0f} KiB up and"
        f" {figures['bytes_down'] / 1024:.0f} KiB down per round"
    )
    return [Text("Rounds with evaluation, all clients"), listing, text]


def _classes(found: Mapping[str, Any]) -> list[RenderableType]:
    return [
        Text(
            f"A step with {found['classes']} classes of ImageNet-like names ({found['tokens']} tokens):"
            f" {median(found['seconds']):.3g} s, {_mebibytes(found['memory'])} MiB at most,"
            f" {found['flops'] / 1e9:.0f} GFLOP"
        )
    ]


def _bf16(found: Mapping[str, Any]) -> list[RenderableType]:
    ratio = median(one / other for one, other in zip(found["single"], found["coarse"], strict=True))
    return [
        Text(
            f"Matrix products in bfloat16: a step is {ratio:.2f}× as fast as in float32;"
            f" Δ loss {found['loss_difference']:.0e}, Δ gradients {found['gradient_difference']:.0e}"
        )
    ]


def _profile(found: Mapping[str, Any]) -> list[RenderableType]:
    listing = _table("kind", "share")
    for kind, share in found["shares"].items():
        listing.add_row(kind, f"{share:.1%}")
    return [Text(f"Where the time of a step goes ({found['seconds']:.3g} s with the profiler)"), listing]


def _scaling(found: list[Mapping[str, Any]]) -> list[RenderableType]:
    listing = _table("clients", "round", "to the first", "evaluation", "peak MiB", "to the first")
    first = found[0]
    for scale in found:
        memory = "" if scale["peak"] is None else f"{scale['peak'] / first['peak']:.3f}×"
        listing.add_row(
            f"{scale['clients']:,}",
            f"{scale['seconds']:.3g} s",
            f"{scale['seconds'] / first['seconds']:.2f}×",
            f"{scale['evaluation']:.3g} s",
            _mebibytes(scale["peak"]),
            memory,
        )
    return [Text("Ten participants of so many clients, pictoclip"), listing]


def _recipe(found: Mapping[str, Any]) -> list[RenderableType]:
    listing = _table("method", "training", "GFLOP", "evaluation", "GFLOP")
    for name, cost in found["methods"].items():
        listing.add_row(
            name,
            f"{cost['training']:.1f} s",
            f"{cost['training_flops'] / 1e9:.0f}",
            f"{cost['evaluation']:.1f} s",
            f"{cost['evaluation_flops'] / 1e9:.0f}",
        )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
    text = Text(
        f"{found['total']:.0f} s from start to result with features cached, {found['workers']} processes.\n"
        f"torch.mm in so many processes at once, for a moment after every round: {fmean(found['gemm']) / 1e9:.0f}"
        f" GFLOP/s; counted operations reach of it: {shares}."
    )
    return [Text("The embedded comparison, all methods"), listing, text]


def _methods(found: list[Mapping[str, Any]]) -> list[RenderableType]:
    listing = _table("method", "round", "step", "to promptfl", "GFLOP", "to promptfl", "MiB", "KiB up", "KiB down")
    first = found[0]
    for cost in found:
        listing.add_row(
            cost["name"],
            f"{median(cost['seconds']):.3g} s",
            f"{1000 * cost['step']:.3g} ms",
            f"{cost['ratio']:.2f}×",
            f"{cost['flops'] / 1e9:.3g}",
            f"{cost['flops'] / first['flops']:.2f}×",
            _mebibytes(cost["memory"]),
            f"{cost['bytes_up'] / 1024:.4g}",
            f"{cost['bytes_down'] / 1024:.4g}",
        )
    what = "Local training of a round of every method, default settings; bytes of one client in a round"
    return [Text(what), listing]


def _depth(found: list[Mapping[str, Any]]) -> list[RenderableType]:
    listing = _table("first layer", "from pictures", "from the state", "saved of a frozen pass", "operations", "GFLOP")
    for depth in found:
        listing.add_row(
            str(depth["layer"]),
            f"{1000 * median(depth['pixels']):.3g} ms",
            f"{1000 * median(depth['state']):.3g} ms",
            f"{depth['saved']:.0%}",
            f"{depth['below']:.0%}",
            f"{depth['flops'] / 1e9:.3g}",
        )
    return [Text("A batch forward and backward through the image tower, trained from a layer on"), listing]


def _conditional(found: list[Mapping[str, Any]]) -> list[RenderableType]:
    listing = _table("classes", "batch", "step", "per class and image", "GFLOP", "MiB")
    for one in found:
        listing.add_row(
            str(one["classes"]),
            str(one["batch"]),
            f"{median(one['seconds']):.3g} s",
            f"{1e6 * median(one['seconds']) / one['classes'] / one['batch']:.0f} µs",
            f"{one['flops'] / 1e9:.3g}",
            _mebibytes(one["memory"]),
        )
    return [Text("A local step of fedcocoop, which reads text for every image"), listing]


def _table(*columns: str) -> Table:
    listing = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        listing.add_column(name, justify="left" if i == 0 else "right")
    return listing


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / MEBI:.0f}"
