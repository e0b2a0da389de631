"""What stands in the tables of a comparison."""

from itertools import permutations
from statistics import fmean, stdev
from typing import Any

from fedpgp.errors import OutputError
from fedpgp.evaluation.bootstrap import METRICS, Difference
from fedpgp.results.formats import Mark, Table, TableCell, to_csv
from fedpgp.results.run import PARTS, RANKED, Comparison, Run, columns

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
        if runs[0].results["private"] and runs[0].results["shared"] is not None:
            alone = comparison.mean(method, "shared")
            texts = [figure_text(*alone[name]) if name in alone else "" for name in shown]
            rows.append([TableCell(f"{method}, shared part"), *map(TableCell, [*texts, "", "", ""])])
    *first, last = [named[name] for name in RANKED if name in shown]
    ranked = f"{', '.join(first)} and {last}"
    return Table(
        caption(comparison),
        ["method", *(named[name] for name in shown), "rank", "KiB up", "seconds"],
        rows,
        LEGEND.format(ranked=ranked, others=others_title(comparison)) if len(comparison.methods) > 1 else "",
    )


def difference_table(comparison: Comparison, reference: str | None = None) -> Table:
    """A method minus each other one, with 95 % intervals of the paired bootstrap. reference: None takes the last."""
    first = reference or comparison.methods[-1]
    named, shown = titles(comparison), [name for name in METRICS if name in columns(comparison.runs[0])]
    rows = []
    for method in comparison.methods:
        if method == first:
            continue
        try:
            cells = [difference_text(found) for found in comparison.against(first, method).values()]
        except OutputError:
            cells = ["no common seed"] * len(shown)
        rows.append([TableCell(method), *map(TableCell, cells)])
    comparison.of(first)  # raises OutputError for a method that is not there
    return Table(
        "Paired bootstrap over test images, 95 % interval",
        [f"{first} minus", *(named[name] for name in shown)],
        rows,
    )


def diagnosis_table(comparison: Comparison) -> Table:
    """How settled each method is: what other rounds and other α would have given, and how its clients differ."""
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        at = [run.at("validation") for run in runs]
        rows.append(
            [
                method,
                _over(run.results["final"]["cm"] for run in runs),
                _over(run.results["last_five"]["cm"] for run in runs),
                _over(run.results["best_on_validation"]["cm"] for run in runs),
                _each(run.results["best_on_validation"]["round"] for run in runs),
                _over(run.results["final"]["cm"] for run in at),
                _each(run.alpha for run in at) if any(len(run.results["path"]) > 1 for run in runs) else "",
                _over(min(_locals(run)) for run in runs),
                _over(stdev(_locals(run)) for run in runs) if len(_locals(runs[0])) > 1 else "",
            ]
        )
    return Table(
        "Diagnosis",
        [
            "method",
            "CM",
            "CM, last five rounds",
            "CM at validation's round",
            "that round",
            "CM at validation's α",
            "that α",
            "lowest Local of a client",
            "std of Local over clients",
        ],
        [list(map(TableCell, row)) for row in rows],
        "Validation images of the base classes choose by the harmonic mean of Local and Base on them.",
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
    seeds = "seed" + "s" * (len(comparison.seeds) > 1) + " " + ", ".join(map(str, comparison.seeds))
    return (
        f"{task['protocol']} on {task['data']}, {task['clients']} clients{dealt}, {what},"
        f" {task['evaluated_on']} images; last round{where}, percent, {seeds}"
    )


def comparison_csv(comparison: Comparison) -> str:
    """A row for every method and, where it has one, its shared part alone: mean and std of each figure."""
    shown = columns(comparison.runs[0])
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        for part, title in PARTS.items():
            if runs[0].results[part] is None:
                continue
            figures = comparison.mean(method, part)
            row: dict[str, Any] = {
                "method": method,
                "part": title,
                "seeds": " ".join(str(run.seed) for run in runs),
            }
            for name in shown:
                row[name], row[f"{name}_std"] = figures.get(name, ("", ""))
            if part == "final":
                row["rank"] = comparison.rank(method)
                row["bytes_up_per_client_round"] = runs[0].results["bytes_up_per_client_round"]
                row["seconds"] = fmean(run.results["seconds"] for run in runs)
            rows.append(row)
    return to_csv(rows)


def path_csv(comparison: Comparison) -> str:
    """A row for every run and every α of its path."""
    rows = [
        {"method": run.method, "seed": run.seed, **point} for run in comparison.runs for point in run.results["path"]
    ]
    return to_csv(rows)


def differences_csv(comparison: Comparison) -> str:
    """A row for every metric of every two methods that share a seed, in both directions."""
    rows = []
    for first, second in permutations(comparison.methods, 2):
        try:
            found = comparison.against(first, second)
        except OutputError:
            continue
        for metric, difference in found.items():
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "metric": metric,
                    "first_minus_second": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                }
            )
    return to_csv(rows, ["first", "second", "metric", "first_minus_second", "low", "high"])


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
        found = comparison.against(method, best)[metric]
        if not found.excludes_zero:
            marks[method] = "same"
        elif found.low > 0:
            marks[method] = "above"
    return marks


def _locals(run: Run) -> list[float]:
    return [client["local"] for client in run.results["clients"]]


def _over(values: Any) -> str:
    found = list(values)
    return figure_text(fmean(found), stdev(found) if len(found) > 1 else None)


def _each(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def figure_text(mean: float, deviation: float | None) -> str:
    """Mean ± standard deviation, or the mean alone."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def difference_text(found: Difference) -> str:
    """A difference, or that there is none, with its interval in a second line."""
    return f"{f'{found.mean:+.1f}' if found.excludes_zero else 'no difference'}\n{found.low:+.1f}..{found.high:+.1f}"
