"""What the command line prints: tables and JSON on standard output, everything else on standard error."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import fedpgp

if TYPE_CHECKING:
    from fedpgp.results import formats
    from fedpgp.studies.cells import StudyCell

out = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class Session:
    """Progress on standard error: bars in a terminal, plain lines elsewhere, nothing when quiet; and what Ctrl-C left.

    directory: where the results go; resume: the command that goes on, where it is not that of a run or comparison.
    """

    def __init__(self, directory: Path, quiet: bool, resume: str | None = None):
        self._directory, self._quiet, self._resume = directory, quiet, resume
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=err,
            disable=quiet or not err.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> "Session":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._bars.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            from fedpgp.results.run_store import resume_command

            command = self._resume if self._resume and self._directory.exists() else resume_command(self._directory)
            err.print(
                f"interrupted; go on with: {command}" if command else "interrupted before the first round", markup=False
            )
            sys.exit(130)

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if self._quiet:
            return
        if err.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
            self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
            if done == total:  # the bars of many runs would fill the screen
                self._bars.remove_task(self._tasks.pop(what))
                err.print(f"{what}: done  {detail}", markup=False)
            return
        now = time.monotonic()
        if done == 0 or (done < total and now - self._said.get(what, 0.0) < 2):
            return
        self._said[what] = now
        err.print(f"{what}: {done}/{total}" + (f"  {detail}" if detail else ""), markup=False)

    def notice(self, text: str) -> None:
        err.print(f"fedpgp: {text}", markup=False)

    def begin(self, method: str, seed: int, config: "fedpgp.ExperimentConfig") -> None:
        pass

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        pass  # `progress` has its headline

    def finish(self, run: "fedpgp.Run") -> None:
        pass


@contextmanager
def tracked(session: Session, kinds: Sequence[str] | None) -> "Iterator[fedpgp.Reporter]":
    """What hears a run: the session and the trackers of --track, which are closed in the end, however it comes."""
    if not kinds:
        yield session
        return
    from fedpgp.tracking import Several, tracker

    with ExitStack() as stack:
        trackers = [stack.enter_context(tracker(kind)) for kind in kinds]
        yield Several([session, *trackers])


def print_plan(plan: str, cells: "Sequence[StudyCell]" = (), as_json: bool = False) -> None:
    """What --dry-run prints. cells: of a grid."""
    if as_json:
        print_json({"plan": plan, "cells": [cell.name for cell in cells]})
        return
    out.print(plan, markup=False)
    for cell in cells:
        out.print(f"  {cell.name}", markup=False)


def print_json(content: object) -> None:
    print(json.dumps(content))


def print_result(comparison: "fedpgp.Comparison", directory: Path, as_json: bool) -> None:
    if as_json:
        print_json(comparison.as_json())
    else:
        print_comparison(comparison)
        records = [record for run in comparison.runs for record in run.rounds]
        training = sum(record["seconds_training"] for record in records)
        evaluation = sum(record["seconds_evaluation"] for record in records)
        spent = f"rounds took {training:.0f} s in training and {evaluation:.0f} s in evaluation"
        err.print(f"written to {directory}; {spent}", markup=False)


def print_comparison(comparison: "fedpgp.Comparison", reference: str | None = None) -> None:
    from fedpgp.report.tables import difference_table, table

    print_table(table(comparison))
    if len(comparison.methods) > 1:
        print_table(difference_table(comparison, reference))


def print_formatted(comparison: "fedpgp.Comparison", form: str, reference: str | None) -> None:
    """Prints it as "markdown", "latex" or "csv"."""
    from fedpgp.report import comparison as report
    from fedpgp.report import tables
    from fedpgp.results import formats

    if form == "markdown":
        print(report.markdown(comparison, reference), end="")
    elif form == "latex":
        print(formats.latex(tables.table(comparison)), end="")
    else:
        print(tables.comparison_csv(comparison), end="")


def print_table(one: "formats.Table") -> None:
    """Prints a table of a report; the best of a column is bold."""
    listing = Table(
        title=escape(one.heading), title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(one.header):
        listing.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in one.rows:
        # In a narrow terminal a deviation goes below its mean.
        texts = [cell.plain if out.width >= 110 else cell.plain.replace(" ± ", "\n± ") for cell in row]
        listing.add_row(
            *(
                f"[bold]{escape(text)}[/]" if cell.mark == "best" else escape(text)
                for text, cell in zip(texts, row, strict=True)
            )
        )
    out.print(listing)
    for text in (one.legend, *one.notes):
        if text:
            out.print(text, markup=False, style="dim")
