"""What the command line prints: tables and JSON on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import fedpgp
from fedpgp.reporting import ProgressBars

if TYPE_CHECKING:
    from fedpgp.results import formats
    from fedpgp.studies.cells import StudyCell

out = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class Session(ProgressBars):
    """Progress on standard error, none when quiet; and after Ctrl-C, how to go on.

    directory: where the results go; resume: the command that goes on, where it is not that of a run or comparison.
    """

    def __init__(self, directory: Path, quiet: bool, resume: str | None = None):
        super().__init__(err)
        self._directory, self._quiet, self._resume = directory, quiet, resume

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            from fedpgp.results.run_store import resume_command

            command = self._resume if self._resume and self._directory.exists() else resume_command(self._directory)
            say(f"interrupted; go on with: {command}" if command else "interrupted before the first round")
            sys.exit(130)

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not self._quiet:
            super().progress(what, done, total, detail)

    def notice(self, text: str) -> None:
        say(f"fedpgp: {text}")


@contextmanager
def tracked(session: Session, kinds: Sequence[str] | None) -> "Iterator[fedpgp.Reporter]":
    """What hears a run: the session and the trackers of --track, which are closed in the end, however it comes."""
    from fedpgp.tracking import Several, tracker

    with ExitStack() as stack:
        trackers = [stack.enter_context(tracker(kind)) for kind in kinds or ()]
        yield Several([session, *trackers])


def say(text: str) -> None:
    """Print a line for the person on standard error."""
    err.print(text, markup=False)


def print_json(content: object) -> None:
    print(json.dumps(content))


def print_plan(plan: str, cells: "Sequence[StudyCell]" = (), as_json: bool = False) -> None:
    """What --dry-run prints. cells: of a grid."""
    if as_json:
        print_json({"plan": plan, "cells": [cell.name for cell in cells]})
        return
    out.print(plan, markup=False)
    for cell in cells:
        out.print(f"  {cell.name}", markup=False)


def print_result(comparison: "fedpgp.Comparison", directory: Path, as_json: bool) -> None:
    if as_json:
        print_json(comparison.as_json())
        return
    print_comparison(comparison)
    records = [record for run in comparison.runs for record in run.rounds]
    training = sum(record["seconds_training"] for record in records)
    evaluation = sum(record["seconds_evaluation"] for record in records)
    say(f"written to {directory}; rounds took {training:.0f} s in training and {evaluation:.0f} s in evaluation")


def print_comparison(comparison: "fedpgp.Comparison", reference: str | None = None) -> None:
    from fedpgp.report.tables import difference_table, table

    print_table(table(comparison))
    if len(comparison.methods) > 1:
        print_table(difference_table(comparison, reference))


def print_table(one: "formats.Table") -> None:
    """Print a table of a report; the best of a column is bold."""

    def shown(cell: "formats.TableCell") -> Text:
        # In a narrow terminal a deviation goes below its mean.
        text = cell.plain if out.width >= 110 else cell.plain.replace(" ± ", "\n± ")
        return Text(text, "bold" if cell.mark == "best" else "")

    print_listing(one.header, ([shown(cell) for cell in row] for row in one.rows), one.header[1:], one.heading)
    for text in (one.legend, *one.notes):
        if text:
            out.print(text, markup=False, style="dim")


def print_listing(
    header: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Collection[str] = (), title: str = ""
) -> None:
    """Print rows of plain cells in columns. right: the columns whose cells are aligned to the right."""
    listing = Table(title=escape(title), title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name in header:
        listing.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        listing.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    out.print(listing)
