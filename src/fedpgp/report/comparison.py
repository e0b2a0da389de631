"""The table and the picture of a comparison."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedpgp.bootstrap import METRICS, Difference
from fedpgp.files import write, write_json
from fedpgp.results import COLUMNS, Comparison

# Okabe and Ito's palette, which colour-blind readers tell apart; the markers differ too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TITLES = {"local": "Local", "base": "Base", "novel": "Novel", "hm": "HM", "cm": "CM", "unseen": "Unseen"}


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Writes comparison.md, the picture as .svg and .png and, last of all, comparison.json."""
    write(directory / "comparison.md", markdown(comparison).encode())
    for suffix in ("svg", "png"):
        write(directory / f"comparison.{suffix}", picture(comparison, suffix))
    write_json(directory / "comparison.json", comparison.as_json())


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean ± standard deviation over the seeds, in percent.

    A method whose clients hold a private part has a second row: what its shared part does alone.
    """
    columns = [name for name in COLUMNS if name in comparison.of(comparison.methods[0])[0].results["final"]]
    header = ["method", *(TITLES[name] for name in columns), "KiB up", "seconds"]
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        figures = comparison.mean(method)
        kib = runs[0].results["bytes_up_per_client_round"] / 1024
        seconds = sum(run.results["seconds"] for run in runs) / len(runs)
        rows.append([method, *(_figure(*figures[name]) for name in columns), f"{kib:g}", f"{seconds:.0f}"])
        has_private = any(name.startswith("private/") for name in runs[0].prompts)
        if has_private and runs[0].results["shared"] is not None:
            figures = comparison.mean(method, "shared")
            rows.append([f"{method}, shared part", *(_figure(*figures[name]) for name in columns), "", ""])
    return header, rows


def difference_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the last method minus each other one, with 95 % intervals of the paired bootstrap."""
    *others, last = comparison.methods
    header = [f"{last} minus", *(TITLES[name] for name in METRICS)]
    rows = []
    for method in others:
        rows.append([method, *map(_difference, comparison.against(last, method).values())])
    return header, rows


def caption(comparison: Comparison) -> str:
    """One line that says what the figures are."""
    task = comparison.runs[0].results["task"]
    seeds = ", ".join(map(str, comparison.seeds))
    return (
        f"{task['protocol']} on {task['data']}, {task['clients']} clients, {task['base_classes']} base and"
        f" {task['novel_classes']} novel classes, {task['evaluated_on']} images; last round, percent, seed {seeds}"
    )


def markdown(comparison: Comparison) -> str:
    """Both tables as Markdown."""
    parts = [f"{caption(comparison)}\n", _markdown(*table(comparison))]
    if len(comparison.methods) > 1:
        parts += ["\nPaired bootstrap over test images, 95 % interval:\n", _markdown(*difference_table(comparison))]
    return "\n".join(parts)


def picture(comparison: Comparison, suffix: str) -> bytes:
    """Local against Novel: a mark per method with the standard deviation over seeds, and a dot per seed."""
    with rc_context({"svg.hashsalt": "fedpgp", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5, 3.8), layout="constrained")
        axes = figure.add_subplot()
        for i, method in enumerate(comparison.methods):
            figures = comparison.mean(method)
            (local, local_std), (novel, novel_std) = figures["local"], figures["novel"]
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            finals = [run.results["final"] for run in comparison.of(method)]
            axes.plot(
                [final["local"] for final in finals], [final["novel"] for final in finals], ".", color=colour, alpha=0.4
            )
            axes.errorbar(
                local, novel, xerr=local_std, yerr=novel_std, color=colour, marker=marker, markersize=7, capsize=3,
                linestyle="none", label=method,
            )  # fmt: skip
        axes.set_xlabel("Local: accuracy on the client's own classes (%)")
        axes.set_ylabel("Novel: accuracy on classes\nthat nobody trained on (%)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return buffer.getvalue()


def _figure(mean: float, deviation: float | None) -> str:
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _difference(found: Difference) -> str:
    return f"{f'{found.mean:+.1f}' if found.excludes_zero else 'no difference'}\n{found.low:+.1f}..{found.high:+.1f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "".join(line.replace("\n", "<br>") + "\n" for line in lines)
