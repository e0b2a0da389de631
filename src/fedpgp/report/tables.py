"""What stands in the tables of a comparison."""

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
    "Bold: the best mean, among the methods with all seeds. =: no difference from it, +: above it, on the seeds that"
    " both have, by the paired bootstrap over test images, 95 %. rank: the mean over seeds of the ranks in {ranked}."
    " area: under Local against {others} along the path from the shared part to the clients' own models."
    " KiB up: what a client sends in a round."
)


def titles(comparison: Comparison) -> dict[str, str]:
    """What the columns are called: Novel is Held-out where it is domains, and a data set's name where it is that."""
    run = comparison.runs[0]
    task = run.results["task"]
    others = {"domains": "Held-out", "data sets": str(task["novel_data"])}
    return {**{name: name for name in columns(run)}, **TITLES, "novel": others.get(task["novel"], TITLES["novel"])}


def others_title(comparison: Comparison) -> str:
    """What Local is traded for."""
    named = titles(comparison)
    return f"HM(Base, {named['novel']})" if "novel" in columns(comparison.runs[0]) else "Base"


def table(comparison: Comparison) -> Table:
    """Mean ± standard deviation over the seeds, in percent.

    A method whose clients hold a private part has a second row: what its shared part does alone. One with fewer seeds
    than the others names them.
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
    """Whether clients hold a private part, and the shared part predicts by itself."""
    return bool(run.results["private"]) and run.results["shared"] is not None


def difference_table(comparison: Comparison, reference: str | None = None) -> Table:
    """A method minus each other one, with 95 % intervals of the paired bootstrap. reference: None takes the last."""
    first = reference or comparison.methods[-1]
    named, shown = titles(comparison), [name for name in METRICS if name in columns(comparison.runs[0])]
    comparison.of(first)  # raises OutputError for a method that is not there
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
    """How settled each method is: what other rounds and other α would have given, and how its clients differ."""
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
        "Validation images of the base classes choose by the harmonic mean of Local and Base on them. macro: every"
        " class has the same weight, however many test images it has.",
    )


def caption(comparison: Comparison) -> str:
    """One line that says what the figures are."""
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
    return (
        f"{task['protocol']} on {task['data']}, {task['clients']} clients{dealt}, {what},"
        f" {task['evaluated_on']} images; last round{where}, percent, {seeds_text(comparison.seeds)}"
    )


def comparison_csv(comparison: Comparison) -> str:
    """A row for every method and, where it has one, its shared part alone: mean and std of each figure."""
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
    """The mean over the seeds of a figure in which every class has the same weight."""
    return fmean(run.macro[name] for run in comparison.of(method))


def path_csv(comparison: Comparison) -> str:
    """A row for every run and every α of its path."""
    return formats.to_csv(
        [{"method": run.method, "seed": run.seed, **point} for run in comparison.runs for point in run.results["path"]]
    )


def differences_csv(comparison: Comparison) -> str:
    """A row for every metric of every two methods that share a seed, in both directions."""
    rows = []
    for first, second in permutations(comparison.methods, 2):
        with suppress(OutputError):
            for metric, difference in comparison.against(first, second).items():
                rows.append([first, second, metric, difference.mean, difference.low, difference.high])
    frame = pd.DataFrame(rows, columns=["first", "second", "metric", "first_minus_second", "low", "high"])
    return frame.to_csv(index=False)


def _marks(comparison: Comparison, metric: str) -> dict[str, Mark]:
    """Which method is best, and which do not differ from it."""
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
    """A table without marks."""
    return Table(heading, header, [list(map(TableCell, row)) for row in rows], legend, notes)


def markdown(tables: Iterable[Table]) -> str:
    """Tables below each other, each below its heading."""
    return "\n".join(f"{one.heading}\n\n{formats.markdown(one)}" for one in tables)


def write_tables(directory: Path, name: str, tables: Sequence[Table]) -> None:
    """Writes tables as .md and as .tex."""
    write(directory / f"{name}.md", markdown(tables).encode())
    write(directory / f"{name}.tex", "\n".join(map(formats.latex, tables)).encode())


def figure_text(mean: float, deviation: float | None) -> str:
    """Mean ± standard deviation, or the mean alone."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def figure_texts(cells: Sequence[Sequence[Run]], names: Iterable[str], part: str = "final") -> list[str]:
    """Of each figure the mean over cells of each seed, and then over the seeds; "" for what a run does not have.

    cells: of each cell its runs, by seed. part: of the results.
    """
    texts = []
    for name in names:
        seeds = [[run.results[part].get(name) for run in runs] for runs in zip(*cells, strict=True)]
        known = all(figure is not None for figures in seeds for figure in figures)
        texts.append(figure_text(*spread(list(map(fmean, seeds)))) if known else "")
    return texts


def difference_text(difference: Difference) -> str:
    """A difference, or that there is none, with its interval in a second line."""
    mean = f"{difference.mean:+.1f}" if difference.excludes_zero else "no difference"
    return f"{mean}\n{difference.low:+.1f}..{difference.high:+.1f}"
