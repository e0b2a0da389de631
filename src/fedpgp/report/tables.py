"""Tables of a comparison."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from fedpgp.errors import OutputError
from fedpgp.evaluation.bootstrap import METRICS, Difference
from fedpgp.results import formats
from fedpgp.results.formats import Mark, Table, TableCell
from fedpgp.results.run import PARTS, RANKED, Comparison, Run, columns, spread
from fedpgp.runs.comparison_plan import seeds_text
from fedpgp.runtime.files import write

TITLES = {
    "local": "Local",
    "base": "Base",
    "novel": "Novel",
    "unseen": "Unseen",
    "new": "New clients",
    "hm": "HM",
    "cm": "CM",
    "area": "area",
}
LEGEND = (
    "Bold: best mean among the methods with all seeds. =: no difference from the best mean; +: higher than the best"
    " mean, on the seeds that both methods have (95 % intervals, paired bootstrap over test images). rank: mean over"
    " seeds of the ranks in {ranked}. area: area under the curve of Local against {others} along the path from the"
    " shared part to the personal models. KiB up: data that a client sends in a round."
)


def titles(comparison: Comparison) -> dict[str, str]:
    """Return the titles of the columns. Novel becomes Held-out for domains, and the name of another dataset."""
    run = comparison.runs[0]
    task = run.results["task"]
    others = {"domains": "Held-out", "data sets": str(task["novel_data"])}
    return {**{name: name for name in columns(run)}, **TITLES, "novel": others.get(task["novel"], TITLES["novel"])}


def others_title(comparison: Comparison) -> str:
    """Return the title of the metric that is plotted against Local."""
    named = titles(comparison)
    return f"HM(Base, {named['novel']})" if "novel" in columns(comparison.runs[0]) else "Base"


def table(comparison: Comparison) -> Table:
    """Return the table of mean ± standard deviation over the seeds, in percent.

    A method with a private part has a second row for the shared part. A method with fewer seeds than the others has its
    seeds after its name.
    """
    named = titles(comparison)
    shown = columns(comparison.runs[0])
    marks = {name: _marks(comparison, name) for name in shown if name in METRICS}
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        figures = comparison.mean(method)
        kib = runs[0].results["bytes_up_per_client_round"] / 1024
        seconds = fmean(run.results["seconds"] for run in runs)
        seeds = [run.seed for run in runs]
        fewer = "" if seeds == comparison.seeds else f" (seed {', '.join(map(str, seeds))})"
        cells = [TableCell(figure_text(*figures[name]), marks.get(name, {}).get(method)) for name in shown]
        after = (f"{comparison.rank(method):.1f}", f"{kib:g}", f"{seconds:.0f}")
        rows.append([TableCell(method + fewer), *cells, *map(TableCell, after)])
        if has_both(runs[0]):
            texts = figure_texts([runs], shown, "shared")
            rows.append([TableCell(f"{method}, shared part"), *map(TableCell, [*texts, "", "", ""])])
    *first, last = [named[name] for name in RANKED if name in shown]
    ranked = f"{', '.join(first)} and {last}"
    return Table(
        caption(comparison),
        ["method", *(named[name] for name in shown), "rank", "KiB up", "seconds"],
        rows,
        LEGEND.format(ranked=ranked, others=others_title(comparison)) if len(comparison.methods) > 1 else "",
    )


def has_both(run: Run) -> bool:
    """Return whether clients have a private part and the shared part can predict without it."""
    return bool(run.results["private"]) and run.results["shared"] is not None


def difference_table(comparison: Comparison, reference: str | None = None) -> Table:
    """Return the table of differences between one method and each other method, with 95 % bootstrap intervals.

    Parameters
    ----------
    comparison
        The comparison.
    reference
        Name of the method from which the others are subtracted; None takes the last method.
    """
    first = reference or comparison.methods[-1]
    named, shown = titles(comparison), [name for name in METRICS if name in columns(comparison.runs[0])]
    comparison.of(first)  # raises OutputError if the method is unknown
    rows = []
    for method in comparison.methods:
        if method == first:
            continue
        try:
            texts = [difference_text(difference) for difference in comparison.against(first, method).values()]
        except OutputError:
            texts = ["no common seed"] * len(shown)
        rows.append([method, *texts])
    return text_table(
        "Paired bootstrap over test images, 95 % interval",
        [f"{first} minus", *(named[name] for name in shown)],
        rows,
    )


def diagnosis_table(comparison: Comparison) -> Table:
    """Return the table of results at other rounds and other α, and of the differences between clients."""
    rows, named = [], titles(comparison)
    for method in comparison.methods:
        runs = comparison.of(method)
        best = [run.results["best_on_validation"] for run in runs]
        at = [run.at("validation") for run in runs]
        locals_ = [of_run for run in runs if (of_run := run.client_locals)]
        rows.append(
            {
                "method": method,
                "CM": _over(run.results["final"]["cm"] for run in runs),
                "CM, last five rounds": _over(run.results["last_five"]["cm"] for run in runs),
                "CM at validation's round": _over(figures["cm"] for figures in best),
                "that round": _each(figures["round"] for figures in best),
                **{
                    f"macro {named[name]}": _over(run.macro[name] for run in runs)
                    for name in RANKED
                    if _has_macro(comparison, name)
                },
                "CM at validation's α": _over(run.results["final"]["cm"] for run in at),
                "that α": _each(run.alpha for run in at if any(len(run.results["path"]) > 1 for run in runs)),
                "lowest Local of a client": _over(map(min, locals_)) if locals_ else "",
                "std of Local over clients": _over(map(stdev, locals_))
                if min(map(len, locals_), default=0) > 1
                else "",
            }
        )
    return text_table(
        "Diagnosis",
        list(rows[0]),
        [list(row.values()) for row in rows],
        "Validation: the round, or α, with the highest harmonic mean of Local and Base on validation images of base"
        " classes. macro: mean over classes, independent of their numbers of test images.",
    )


def caption(comparison: Comparison) -> str:
    """Return a line that describes the figures, also how many clients they cover if clients are missing."""
    task = comparison.runs[0].results["task"]
    what = {
        "classes": f"{task['base_classes']} base and {task['novel_classes']} novel classes",
        "domains": f"{task['base_classes']} classes, held out: {', '.join(task['novel_domains'])}",
        "data sets": f"{task['base_classes']} classes, tested on {task['novel_data']} with {task['novel_classes']}",
        "nothing": f"{task['base_classes']} classes",
    }[task["novel"]]
    dealt = "" if task["partition"] == "classes" else f" ({task['partition']})"
    alphas = {run.alpha for run in comparison.runs if len(run.results["path"]) > 1}
    where = "" if alphas <= {1.0} else f", α {', '.join(f'{alpha:g}' for alpha in sorted(alphas))}"
    named = len({run.coverage for run in comparison.runs}) > 1
    covers = dict.fromkeys(
        f"; Local{f' of {run.method}, seed {run.seed},' if named else ''} covers {run.coverage}"
        for run in comparison.runs
        if run.coverage
    )
    return (
        f"{task['protocol']} on {task['data']}, {task['clients']} clients{dealt}, {what},"
        f" {task['evaluated_on']} images; last round{where}, percent, {seeds_text(comparison.seeds)}{''.join(covers)}"
    )


def comparison_csv(comparison: Comparison) -> str:
    """Return CSV text with a row for every method and every shared part: mean and std of each metric."""
    frame = comparison.table().reset_index()
    frame.insert(2, "seeds", [" ".join(str(run.seed) for run in comparison.of(method)) for method in frame["method"]])
    own = frame["part"] == PARTS["final"]
    for name, value in (
        *((f"macro_{name}", partial(_macro, comparison, name)) for name in RANKED if _has_macro(comparison, name)),
        ("rank", comparison.rank),
        ("bytes_up_per_client_round", lambda method: comparison.of(method)[0].results["bytes_up_per_client_round"]),
        ("seconds", lambda method: fmean(run.results["seconds"] for run in comparison.of(method))),
    ):
        frame[name] = frame["method"].map(value).astype(object).where(own)
    return frame.to_csv(index=False)


def _has_macro(comparison: Comparison, name: str) -> bool:
    return all(name in run.macro for run in comparison.runs)


def _macro(comparison: Comparison, name: str, method: str) -> float:
    """Return the mean over the seeds of a metric in which every class has the same weight."""
    return fmean(run.macro[name] for run in comparison.of(method))


def path_csv(comparison: Comparison) -> str:
    """Return CSV text with a row for every run and every α of its path."""
    return formats.to_csv(
        [{"method": run.method, "seed": run.seed, **point} for run in comparison.runs for point in run.results["path"]]
    )


def differences_csv(comparison: Comparison) -> str:
    """Return CSV text with a row for every metric of every two methods with a common seed, in both directions."""
    rows = []
    for first, second in permutations(comparison.methods, 2):
        with suppress(OutputError):
            for metric, difference in comparison.against(first, second).items():
                rows.append([first, second, metric, difference.mean, difference.low, difference.high])
    frame = pd.DataFrame(rows, columns=["first", "second", "metric", "first_minus_second", "low", "high"])
    return frame.to_csv(index=False)


def _marks(comparison: Comparison, metric: str) -> dict[str, Mark]:
    """Return the mark of each method: best, the same as the best, or above it."""
    whole = [m for m in comparison.methods if [run.seed for run in comparison.of(m)] == comparison.seeds]
    if len(comparison.methods) < 2 or not whole:
        return {}
    best = max(whole, key=lambda method: comparison.mean(method)[metric][0])
    marks: dict[str, Mark] = {best: "best"}
    for method in comparison.methods:
        if method == best:
            continue
        difference = comparison.against(method, best)[metric]
        if not difference.excludes_zero:
            marks[method] = "same"
        elif difference.low > 0:
            marks[method] = "above"
    return marks


def _over(values: Iterable[float]) -> str:
    return figure_text(*spread(list(values)))


def _each(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def text_table(
    heading: str, header: Sequence[str], rows: Iterable[Sequence[str]], legend: str = "", notes: Sequence[str] = ()
) -> Table:
    """Return a table without marks."""
    return Table(heading, header, [list(map(TableCell, row)) for row in rows], legend, notes)


def markdown(tables: Iterable[Table]) -> str:
    """Return tables as Markdown, each with its heading."""
    return "\n".join(f"{one.heading}\n\n{formats.markdown(one)}" for one in tables)


def write_tables(directory: Path, name: str, tables: Sequence[Table]) -> None:
    """Write tables as .md and as .tex."""
    write(directory / f"{name}.md", markdown(tables).encode())
    write(directory / f"{name}.tex", "\n".join(map(formats.latex, tables)).encode())


def figure_text(mean: float, deviation: float | None) -> str:
    """Return "mean ± standard deviation", or only the mean."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def figure_texts(cells: Sequence[Sequence[Run]], names: Iterable[str], part: str = "final") -> list[str]:
    """Return a text for each metric: mean ± std over the seeds of the mean over cells; "" if a run lacks the metric.

    Parameters
    ----------
    cells
        Runs of each cell, in the order of seeds.
    names
        Names of the metrics.
    part
        Name of the part of the results.
    """
    texts = []
    for name in names:
        seeds = [[run.results[part].get(name) for run in runs] for runs in zip(*cells, strict=True)]
        known = all(figure is not None for figures in seeds for figure in figures)
        texts.append(figure_text(*spread(list(map(fmean, seeds)))) if known else "")
    return texts


def difference_text(difference: Difference) -> str:
    """Return a difference, or "no difference", with the interval in a second line."""
    mean = f"{difference.mean:+.1f}" if difference.excludes_zero else "no difference"
    return f"{mean}\n{difference.low:+.1f}..{difference.high:+.1f}"
