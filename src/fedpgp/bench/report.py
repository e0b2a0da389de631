"""Tables of the benchmark: the values of `--json` under the same names, with units."""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedpgp.bench.machine import ratio

Row = Mapping[str, Any]

# Unit and format of a number by its name. Numbers without an entry are counts.
FORMATS: Mapping[str, tuple[float, str]] = {
    **dict.fromkeys(("seconds", "training", "evaluation", "step", "pixels", "state", "total"), (1, "{:.3g} s")),
    **dict.fromkeys(("naive", "ours", "ours_training", "ours_evaluation", "encoding"), (1, "{:.4g} s")),
    **dict.fromkeys(("to_naive", "to_previous", "ratio"), (1, "{:.2f}×")),
    **dict.fromkeys(("loss_difference", "gradient_difference", "parameters_differ"), (1, "{:.0e}")),
    **dict.fromkeys(("share", "share_batched", "saved", "below"), (0.01, "{:.3g}%")),
    **dict.fromkeys(("memory", "peak"), (2**20, "{:.0f} MiB")),
    **dict.fromkeys(("bytes_up", "bytes_down"), (2**10, "{:.4g} KiB")),
    **dict.fromkeys(("flops", "flops_linear", "naive_flops"), (1e9, "{:.3g} GFLOP")),
    **dict.fromkeys(("training_flops", "evaluation_flops"), (1e9, "{:.0f} GFLOP")),
    **dict.fromkeys(("gemm", "gemm_one_thread", "gemm_batched"), (1e9, "{:.1f} GFLOP/s")),
}


def tables(result: Row) -> Group:
    """Return the tables of a result of `run_suite`."""
    options, machine = result["options"], result["machine"]
    heading = (
        f"{options['shape']}, {options['precision']}, {result['task']}\n"
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} of {machine['cores']} cores,"
        f" PyTorch {machine['torch']}, transformers {machine['transformers']}"
    )
    shown = [part for name, show in PARTS.items() if name in result for part in ("", *show(result[name]))]
    return Group(*[part if isinstance(part, Table) else Text(part) for part in (heading, *shown)])


STAGE = ("name", "seconds", "to_naive", "to_previous", "memory", "loss_difference", "gradient_difference")


def _step(step: Row) -> list[str | Table]:
    return [
        "One local step of one client",
        _table(step["stages"], *STAGE),
        "Operations of a step, of its products with weights, and of the naive step; gemm: speed of torch.mm at the same"
        " shapes; share: fraction of this speed that a whole step reaches; batched: number of clients in one batch",
        _table([step["speed"]], "flops", "flops_linear", "naive_flops", "gemm", "gemm_one_thread", "share"),
        _table([step["speed"]], "batched", "gemm_batched", "share_batched"),
    ]


def _round(figures: Row) -> list[str | Table]:
    ratios = [{"naive over ours": name, "ratio": value} for name, value in figures["ratios"].items()]
    pairs = zip(figures["units"].items(), figures["calls"].values(), strict=True)
    units = [{"unit": name, "calls": calls, "seconds": seconds} for (name, seconds), calls in pairs]
    how = "measured" if figures["naive_measured"] else "computed from units measured in this run"
    return [
        "Rounds with evaluation, all clients",
        _table(ratios, "naive over ours", "ratio"),
        f"Seconds of a round; the naive round is {how}",
        _table([figures], "naive", "ours", "ours_training", "ours_evaluation", "images_encoded", "encoding"),
        _table([figures], "memory", "bytes_up", "bytes_down", "parameters_differ", "answers_differ"),
        _table(units, "unit", "calls", "seconds"),
    ]


def _scaling(rows: list[Row]) -> list[str | Table]:
    first = rows[0]
    compared = [
        {
            **row,
            "seconds to first": f"{row['seconds'] / first['seconds']:.2f}×",
            "peak to first": "unknown" if row["peak"] is None else f"{row['peak'] / first['peak']:.3f}×",
        }
        for row in rows
    ]
    listing = _table(compared, "clients", "seconds", "seconds to first", "evaluation", "peak", "peak to first")
    return [
        "Ten participants per round, pictoclip: a round without evaluation, and an evaluation of all clients",
        listing,
    ]


def _classes(figures: Row) -> list[str | Table]:
    listing = _table([figures], "classes", "tokens", "seconds", "memory", "flops")
    return ["A step with many ImageNet-like class names", listing]


def _general(rows: list[Row]) -> list[str | Table]:
    title = "Cost of the general text encoder: a step over ten classes, with the same weights"
    return [title, _table(rows, *STAGE)]


def _bf16(figures: Row) -> list[str | Table]:
    return [
        f"Matrix products in bfloat16: a step is {ratio(figures['single'], figures['coarse']):.2f}× as fast as in"
        f" float32; Δ loss {figures['loss_difference']:.0e}, Δ gradients {figures['gradient_difference']:.0e}"
    ]


def _profile(figures: Row) -> list[str | Table]:
    shares = [{"kind": kind, "share": share} for kind, share in figures["shares"].items()]
    title = f"Time of a step by kind of operation ({figures['seconds']:.3g} s with the profiler)"
    return [title, _table(shares, "kind", "share")]


def _recipe(figures: Row) -> list[str | Table]:
    costs = [{"name": name, **cost} for name, cost in figures["methods"].items()]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["shares"].items())
    return [
        "The embedded comparison, all methods",
        _table(costs, "name", "training", "training_flops", "evaluation", "evaluation_flops"),
        f"Time from start to result with cached features; share of the speed of torch.mm in all processes: {shares}",
        _table([{**figures, "gemm": fmean(figures["gemm"])}], "workers", "total", "gemm"),
    ]


def _methods(rows: list[Row]) -> list[str | Table]:
    compared = [{**row, "flops to promptfl": f"{row['flops'] / rows[0]['flops']:.2f}×"} for row in rows]
    title = (
        "Local training in a round of every method with default settings; ratio: time of a step compared with promptfl;"
        " bytes: sent by and to one client in a round"
    )
    names = ("name", "seconds", "step", "ratio", "flops", "flops to promptfl", "memory", "bytes_up", "bytes_down")
    return [title, _table(compared, *names)]


def _depth(rows: list[Row]) -> list[str | Table]:
    title = (
        "Forward and backward pass of a batch through the image tower, which is trained from a layer upwards, from"
        " pixels and from the cached state; saved: share of the time of a frozen pass; below: share of its operations"
    )
    return [title, _table(rows, "layer", "pixels", "state", "saved", "below", "flops")]


def _conditional(rows: list[Row]) -> list[str | Table]:
    each = "per class and image"
    compared = [{**row, each: f"{1e6 * median(row['seconds']) / row['classes'] / row['batch']:.0f} µs"} for row in rows]
    listing = _table(compared, "classes", "batch", "seconds", each, "flops", "memory")
    return ["A local step of fedcocoop, which encodes text for every image", listing]


PARTS: Mapping[str, Callable[[Any], list[str | Table]]] = {
    "step": _step,
    "round": _round,
    "classes": _classes,
    "general": _general,
    "bf16": _bf16,
    "profile": _profile,
    "scaling": _scaling,
    "recipe": _recipe,
    "methods": _methods,
    "depth": _depth,
    "conditional": _conditional,
}


def _table(rows: Iterable[Row], *names: str) -> Table:
    """Return a table of the named columns."""
    listing = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(names):
        listing.add_column(name.replace("_", " "), justify="left" if i == 0 else "right")
    for row in rows:
        listing.add_row(*(_written(name, row[name]) for name in names))
    return listing


def _written(name: str, value: Any) -> str:
    """Return a text unchanged, a number with its unit, or the median of several numbers."""
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    if name not in FORMATS:
        return f"{value:,}"
    unit, form = FORMATS[name]
    return form.format((median(value) if isinstance(value, list) else value) / unit)
