"""The benchmark's tables."""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedpgp.bench.machine import ratio

MEBI = 2**20

Row = Mapping[str, Any]


def tables(result: Row) -> Group:
    """Everything that was measured, ratios first; result: of `run_suite`."""
    options, machine = result["options"], result["machine"]
    heading = (
        f"{options['shape']}, {options['precision']}, {result['task']}\n"
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} of {machine['cores']} cores,"
        f" PyTorch {machine['torch']}, transformers {machine['transformers']}"
    )
    shown = [part for name, show in PARTS.items() if name in result for part in ("", *show(result[name]))]
    return Group(*[part if isinstance(part, Table) else Text(part) for part in (heading, *shown)])


def _step(step: Row) -> list[str | Table]:
    listing = _table(
        step["stages"],
        {
            "stage": lambda stage: stage["name"],
            "seconds": lambda stage: f"{median(stage['seconds']):.4g}",
            "to naive": lambda stage: f"{stage['to_naive']:.2f}×",
            "to the one before": lambda stage: f"{stage['to_previous']:.2f}×",
            "MiB": lambda stage: _mebibytes(stage["memory"]),
            "Δ loss": lambda stage: f"{stage['loss_difference']:.0e}",
            "Δ gradients": lambda stage: f"{stage['gradient_difference']:.0e}",
        },
    )
    speed = step["speed"]
    text = (
        f"A step of the library takes {speed['flops'] / 1e9:.2f} GFLOP ({speed['flops_linear'] / speed['flops']:.0%}"
        f" in products with weights), naive {speed['naive_flops'] / 1e9:.2f}.\n"
        f"torch.mm at the step's shapes: {speed['gemm'] / 1e9:.1f} GFLOP/s"
        f" ({speed['gemm_one_thread'] / 1e9:.1f} on one thread); the products with weights reach {speed['share']:.0%}"
        f" of it over the whole step, {speed['batched']} clients at once {speed['share_batched']:.0%} of"
        f" {speed['gemm_batched'] / 1e9:.1f}."
    )
    return ["One local step of one client", listing, text]


def _round(figures: Row) -> list[str | Table]:
    calls, units = figures["calls"], figures["units"]
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
    text = (
        f"naive: {figures['naive']:.4g} s, {how}\n"
        f"ours: {figures['ours']:.4g} s measured, {figures['ours_training']:.3g} in training and"
        f" {figures['ours_evaluation']:.3g} in evaluation; encoding {figures['images_encoded']} images once:"
        f" {figures['encoding']:.4g} s\n"
        f"memory: {_mebibytes(figures['memory'])} MiB; all clients: {figures['bytes_up'] / 1024:.0f} KiB up and"
        f" {figures['bytes_down'] / 1024:.0f} KiB down per round"
    )
    columns = {"naive over ours": lambda pair: pair[0], "ratio": lambda pair: f"{pair[1]:.1f}×"}
    return ["Rounds with evaluation, all clients", _table(figures["ratios"].items(), columns), text]


def _scaling(rows: list[Row]) -> list[str | Table]:
    first = rows[0]
    columns = {
        "clients": lambda row: f"{row['clients']:,}",
        "round": lambda row: f"{row['seconds']:.3g} s",
        "round to the first": lambda row: f"{row['seconds'] / first['seconds']:.2f}×",
        "evaluation": lambda row: f"{row['evaluation']:.3g} s",
        "peak MiB": lambda row: _mebibytes(row["peak"]),
        "peak to the first": lambda row: "" if row["peak"] is None else f"{row['peak'] / first['peak']:.3f}×",
    }
    return ["Ten participants of so many clients, pictoclip", _table(rows, columns)]


def _classes(figures: Row) -> list[str | Table]:
    return [
        f"A step with {figures['classes']} classes of ImageNet-like names ({figures['tokens']} tokens):"
        f" {median(figures['seconds']):.3g} s, {_mebibytes(figures['memory'])} MiB at most,"
        f" {figures['flops'] / 1e9:.0f} GFLOP"
    ]


def _bf16(figures: Row) -> list[str | Table]:
    return [
        f"Matrix products in bfloat16: a step is {ratio(figures['single'], figures['coarse']):.2f}× as fast as in"
        f" float32; Δ loss {figures['loss_difference']:.0e}, Δ gradients {figures['gradient_difference']:.0e}"
    ]


def _profile(figures: Row) -> list[str | Table]:
    columns = {"kind": lambda pair: pair[0], "share": lambda pair: f"{pair[1]:.1%}"}
    title = f"Where the time of a step goes ({figures['seconds']:.3g} s with the profiler)"
    return [title, _table(figures["shares"].items(), columns)]


def _recipe(figures: Row) -> list[str | Table]:
    listing = _table(
        [{"name": name, **cost} for name, cost in figures["methods"].items()],
        {
            "method": lambda cost: cost["name"],
            "training": lambda cost: f"{cost['training']:.1f} s",
            "training GFLOP": lambda cost: f"{cost['training_flops'] / 1e9:.0f}",
            "evaluation": lambda cost: f"{cost['evaluation']:.1f} s",
            "evaluation GFLOP": lambda cost: f"{cost['evaluation_flops'] / 1e9:.0f}",
        },
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["shares"].items())
    text = (
        f"{figures['total']:.0f} s from start to result with features cached, {figures['workers']} processes.\n"
        f"torch.mm in so many processes at once, for a moment after every round: {fmean(figures['gemm']) / 1e9:.0f}"
        f" GFLOP/s; counted operations reach of it: {shares}."
    )
    return ["The embedded comparison, all methods", listing, text]


def _methods(rows: list[Row]) -> list[str | Table]:
    columns = {
        "method": lambda cost: cost["name"],
        "round": lambda cost: f"{median(cost['seconds']):.3g} s",
        "step": lambda cost: f"{1000 * cost['step']:.3g} ms",
        "step to promptfl": lambda cost: f"{cost['ratio']:.2f}×",
        "GFLOP": lambda cost: f"{cost['flops'] / 1e9:.3g}",
        "GFLOP to promptfl": lambda cost: f"{cost['flops'] / rows[0]['flops']:.2f}×",
        "MiB": lambda cost: _mebibytes(cost["memory"]),
        "KiB up": lambda cost: f"{cost['bytes_up'] / 1024:.4g}",
        "KiB down": lambda cost: f"{cost['bytes_down'] / 1024:.4g}",
    }
    title = "Local training of a round of every method, default settings; bytes of one client in a round"
    return [title, _table(rows, columns)]


def _depth(rows: list[Row]) -> list[str | Table]:
    columns = {
        "first layer": lambda depth: str(depth["layer"]),
        "from pictures": lambda depth: f"{1000 * median(depth['pixels']):.3g} ms",
        "from the state": lambda depth: f"{1000 * median(depth['state']):.3g} ms",
        "saved of a frozen pass": lambda depth: f"{depth['saved']:.0%}",
        "operations": lambda depth: f"{depth['below']:.0%}",
        "GFLOP": lambda depth: f"{depth['flops'] / 1e9:.3g}",
    }
    return ["A batch forward and backward through the image tower, trained from a layer on", _table(rows, columns)]


def _conditional(rows: list[Row]) -> list[str | Table]:
    def per_class_and_image(row: Row) -> str:
        return f"{1e6 * median(row['seconds']) / row['classes'] / row['batch']:.0f} µs"

    columns = {
        "classes": lambda row: str(row["classes"]),
        "batch": lambda row: str(row["batch"]),
        "step": lambda row: f"{median(row['seconds']):.3g} s",
        "per class and image": per_class_and_image,
        "GFLOP": lambda row: f"{row['flops'] / 1e9:.3g}",
        "MiB": lambda row: _mebibytes(row["memory"]),
    }
    return ["A local step of fedcocoop, which reads text for every image", _table(rows, columns)]


PARTS: Mapping[str, Callable[[Any], list[str | Table]]] = {
    "step": _step,
    "round": _round,
    "classes": _classes,
    "bf16": _bf16,
    "profile": _profile,
    "scaling": _scaling,
    "recipe": _recipe,
    "methods": _methods,
    "depth": _depth,
    "conditional": _conditional,
}


def _table(rows: Iterable[Any], columns: Mapping[str, Callable[[Any], str]]) -> Table:
    """columns: by title, what stands in the column's cell of a row."""
    listing = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for i, title in enumerate(columns):
        listing.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        listing.add_row(*(cell(row) for cell in columns.values()))
    return listing


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / MEBI:.0f}"
