"""Sections of a report: what the page shows about the runs of one task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from altair.typing import ChartType

from fedpgp.errors import FedPGPError
from fedpgp.report import charts, frames, tables
from fedpgp.report.page import breakdown, brief, run_details
from fedpgp.report.page.html import Part, Section, texts
from fedpgp.results.formats import Table
from fedpgp.results.run import Comparison, Run

Progress = Callable[[str, int, int, str], None]
Plan = tuple[
    Callable[[], pd.DataFrame], Callable[[pd.DataFrame], ChartType]
]  # functions that return the data and the chart
COSTS = (
    "KiB: data that a client sends (up) and receives (down) in a round. Seconds: time of a run. Calibration error:"
    " expected calibration error in percentage points, mean over clients."
)
EXAMPLES = (
    "A random selection of test images of the classes of the first clients: first images that a client gets wrong, then"
    " right ones. The first line is the answer at the end of the run with its probability. The lists are computed again"
    " from the stored prompts, without a memory of a client's images."
)


def section(
    part: Mapping[Path, Run],
    going: Mapping[str, frames.Records],
    focus: str | None,
    whole: bool,
    progress: Progress,
) -> Section:
    """Return the section about the runs of one task.

    Parameters
    ----------
    part
        Finished runs by directory.
    going
        Records of unfinished runs by name.
    focus
        Name of the method that is shown in detail; None takes the last method.
    whole
        Whether parts that need the model and the images are shown, too.
    progress
        Function that is called with a description, the number of finished steps, their total, and a detail.
    """
    comparison, notes = Comparison(list(part.values())), list[str]()
    method = focus if focus in comparison.methods else comparison.methods[-1]
    run, others = comparison.of(method)[0], tables.others_title(comparison)
    gains = frames.clients(comparison)
    few = breakdown.shown_clients(run)
    few_dots = (lambda: gains, charts.clients)
    many_dots = (lambda: breakdown.gain_quantiles(gains), breakdown.gain_quantiles_chart)
    plans: dict[str, Plan | Callable[[], Part | None]] = {
        "results": lambda: Part("results", "Results", table=tables.table(comparison)),
        "differences": lambda: brief.differing(comparison, None if focus is None else method),
        "diagnosis": lambda: _diagnosis(comparison),
        "tradeoff": (lambda: frames.tradeoff(comparison), partial(charts.tradeoff, others=others)),
        "rounds": learning_curves(comparison, going),
        "clients": few_dots if len(gains) <= breakdown.DOTS else many_dots,
        "local": (lambda: breakdown.histogram(run, gains), breakdown.histogram_chart),
        "client-table": lambda: Part("client-table", "Each client", table=breakdown.client_table(run, gains)),
        "client-by-class": (lambda: breakdown.shown_classes(frames.client_by_class(few)), charts.client_by_class),
        "classes": (lambda: breakdown.shown_classes(frames.by_class(run)), charts.by_class),
        "class-table": lambda: _table("class-table", "Each class", breakdown.class_table(comparison, method)),
        "confusion": (lambda: breakdown.confusion_frame(run), breakdown.confusion_chart),
        "confused": lambda: _table("confused", "Most confused pairs of classes", breakdown.confused_pairs(run)),
        "cosines": (lambda: frames.cosines(comparison), partial(charts.curves, unit="cosine")),
        "singular-values": (lambda: frames.singular_values(few), charts.singular_values),
    }
    if len(run.results["clients"]) < breakdown.FEW:
        del plans["local"]
    if len(comparison.methods) < 2:
        del plans["differences"]
    if whole:
        with ThreadPoolExecutor(1) as other, _noting(notes, f"text features and images of {method}"):
            other.submit(lambda: [one.resampled for one in comparison.runs])  # for the tables, while a model is loaded
            found = run_details.models(run)
            plans["text-features"] = (partial(run_details.text_features, found), charts.text_features)
            plans["examples"] = lambda: _examples(found)
    parts = brief.opening(comparison) + drawn(plans, {"method": method, "others": others}, notes, progress)
    costs = frames.costs(comparison).to_dict("records")
    parts += [
        Part("costs", "Costs", table=_rows(costs, COSTS)),
        Part("provenance", "Provenance", table=_rows([_provenance(one, place) for place, one in part.items()])),
        brief.repeating(comparison),
    ]
    if notes:
        parts.append(Part("notes", "What is not shown", lines=notes))
    return Section(tables.caption(comparison), parts)


def learning_curves(comparison: Comparison, going: Mapping[str, frames.Records]) -> Plan:
    """Return the plan of the learning curves of finished and unfinished runs."""
    running = {f"{name} (running)": records for name, records in going.items()}
    return lambda: frames.learning_curves(comparison, running), charts.curves


def drawn(
    plans: Mapping[str, Plan | Callable[[], Part | None]],
    fields: Mapping[str, str],
    notes: list[str],
    progress: Progress,
) -> list[Part]:
    """Return the parts that have data, and note the others.

    Parameters
    ----------
    plans
        For each name, the functions of a figure, or a function that returns a part or None.
    fields
        Values of the fields of figures.toml.
    notes
        List to which messages are appended.
    progress
        Function that is called with a description, the number of finished steps, their total, and a detail.
    """
    parts = []
    for at, (name, plan) in enumerate(plans.items()):
        progress("parts", at, len(plans), name)
        with _noting(notes, name):
            if callable(plan):
                part = plan()
            else:
                numbers, draw = plan
                frame = numbers()
                part = None if frame.empty else Part(name, *texts(name, **fields), chart=draw(frame), frame=frame)
            if part is None:
                notes.append(f"{name}: the runs have no data for this part.")
            else:
                parts.append(part)
    progress("parts", len(plans), len(plans), "")
    return parts


def _diagnosis(comparison: Comparison) -> Part:
    return Part("diagnosis", "Diagnosis", table=tables.diagnosis_table(comparison))


def _table(name: str, title: str, table: Table | None) -> Part | None:
    return Part(name, title, table=table) if table and table.rows else None


def _examples(found: run_details.Models) -> Part | None:
    pictures = run_details.examples(found)
    title = f"Images that clients of {found.run.method} get wrong and right"
    return Part("examples", title, EXAMPLES, pictures=pictures) if pictures else None


def _rows(rows: Sequence[Mapping[str, Any]], legend: str = "") -> Table:
    return tables.text_table("", list(rows[0]), [list(map(str, row.values())) for row in rows], legend)


@contextmanager
def _noting(notes: list[str], what: str) -> Iterator[None]:
    """Note the reason if something cannot be shown."""
    try:
        yield
    except FedPGPError as error:
        notes.append(f"{what} cannot be shown: {error}")


def _provenance(run: Run, directory: Path) -> dict[str, Any]:
    made = run.provenance
    return {
        "run": f"{run.method}, seed {run.seed}",
        "directory": directory.name if directory.parent.name != run.method else f"{run.method}/{directory.name}",
        "started": made.get("started", ""),
        "fedpgp": made.get("fedpgp", ""),
        "torch": made.get("packages", {}).get("torch", ""),
        "checkpoint": str(made.get("checkpoint", ""))[:12],
        "rounds": run.results["rounds"],
    }
