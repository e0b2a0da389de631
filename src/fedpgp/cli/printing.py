"""Output of the command line: tables and JSON on standard output, everything else on standard error."""

import json
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import fedpgp
from fedpgp.reporting import ProgressBars, SafeConsole

if TYPE_CHECKING:
    from fedpgp.results import formats
    from fedpgp.studies.cells import StudyCell

out = SafeConsole(width=None if sys.stdout.isatty() else 132, highlight=False, emoji=False)
err = SafeConsole(stderr=True, soft_wrap=True, highlight=False, emoji=False)

LINES = re.compile("\n")
UNBROKEN = re.compile(r"\n|(?<!±) (?![±=+])")  # not within "68.1 ± 0.5 ="


class Session(ProgressBars):
    """Reporter that prints progress on standard error, and after Ctrl-C the command that resumes.

    Parameters
    ----------
    directory
        Directory of the results.
    quiet
        Print no progress.
    resume
        The command that resumes a study; None for a run or a comparison.
    """

    def __init__(self, directory: Path, quiet: bool, resume: str | None = None):
        super().__init__(err)
        self._directory, self._quiet, self._resume = directory, quiet, resume

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            from fedpgp.results.run_store import resume_remedy

            known = self._resume and self._directory.exists()
            remedy = f"Resume it with `{self._resume}`" if known else resume_remedy(self._directory)
            say(f"Interrupted. {remedy}." if remedy else "Interrupted before the first round.")
            sys.exit(130)

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not self._quiet:
            super().progress(what, done, total, detail)

    def notice(self, text: str) -> None:
        say(f"fedpgp: {text}")


@contextmanager
def tracked(session: Session, kinds: Sequence[str] | None) -> "Iterator[fedpgp.Reporter]":
    """Yield a reporter for the session and the trackers of --track, and close the trackers in any case."""
    from fedpgp.tracking import Several, tracker

    with ExitStack() as stack:
        trackers = [stack.enter_context(tracker(kind)) for kind in kinds or ()]
        yield Several([session, *trackers])


def say(text: str) -> None:
    """Print a line on standard error."""
    err.print(text, markup=False, soft_wrap=True)


def next_command(*words: object) -> None:
    """Print the one command that a user would type next, unless --quiet or --json was given."""
    given = click.get_current_context().params
    if not (given.get("quiet") or given.get("as_json")):
        say(f"Next: fedpgp {shlex.join(map(str, words))}")


def report_of(directory: Path) -> tuple[object, ...]:
    """Return the command for a report whose file no other report has."""
    return "report", directory, "-o", f"{directory}.html"


def typed(*left_out: str, only: Collection[str] = ()) -> list[str]:
    """Return the options and arguments of the command as they were typed.

    Parameters
    ----------
    left_out
        Parameters to leave out.
    only
        The parameters to take; all, if it is empty.
    """
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name in left_out or (only and name not in only):
            continue
        value = context.params[name]
        for each in value if isinstance(value, list | tuple) else [value]:
            flag = [] if isinstance(parameter, click.Argument) else parameter.opts[:1]
            words += [*flag, *([] if each is True else [str(each)])]
    return words


def print_json(content: object) -> None:
    """Print JSON on standard output."""
    print(json.dumps(content))


def print_plan(plan: str, cells: "Sequence[StudyCell]" = (), as_json: bool = False) -> None:
    """Print the plan of --dry-run, the cells of a grid, and the command without --dry-run."""
    if as_json:
        print_json({"plan": plan, "cells": [cell.name for cell in cells]})
        return
    out.print(plan, markup=False)
    for cell in cells:
        out.print(f"  {cell.name}", markup=False)
    next_command(click.get_current_context().info_name, *typed("dry_run"))


def print_result(
    comparison: "fedpgp.Comparison", directory: Path, as_json: bool, following: Sequence[object] = ()
) -> None:
    """Print the table of new runs, their directory, the time of their rounds, and the next command."""
    if as_json:
        print_json(comparison.as_json())
        return
    print_comparison(comparison)
    records = [record for run in comparison.runs for record in run.rounds]
    training = sum(record["seconds_training"] for record in records)
    evaluation = sum(record["seconds_evaluation"] for record in records)
    say(f"The results are in {directory}. Training took {training:.0f} s and evaluation {evaluation:.0f} s.")
    next_command(*(following or report_of(directory)))


def print_comparison(comparison: "fedpgp.Comparison", reference: str | None = None) -> None:
    """Print the table of a comparison, and the differences from a reference method."""
    from fedpgp.report.tables import difference_table, table

    print_table(table(comparison))
    if len(comparison.methods) > 1:
        print_table(difference_table(comparison, reference))


def print_table(one: "formats.Table") -> None:
    """Print a table of a report. The best value of each column is bold.

    If the terminal is too narrow, texts wrap at blanks, and standard deviations are below their means. If it is still
    too narrow, the last columns follow in further tables, which repeat the first column. No number is broken.
    """
    texts = [[cell.plain for cell in row] for row in one.rows]
    least = _widths(one.header, texts, UNBROKEN)
    if not _fits(least):
        texts = [[_stacked(cell) for cell in row] for row in one.rows]
        least = _widths(one.header, texts, UNBROKEN)
    whole = _widths(one.header, texts, LINES)
    heading = one.heading
    for group in _groups(least):
        cells = [
            [Text(text[at], "bold" if row[at].mark == "best" else "") for at in group]
            for text, row in zip(texts, one.rows, strict=True)
        ]
        header = [one.header[at] for at in group]
        widths = _shared([least[at] for at in group], [whole[at] for at in group])
        print_listing(header, cells, header[1:], heading, widths)
        heading = ""
    for text in (one.legend, *one.notes):
        if text:
            out.print(text, markup=False, style="dim")


def _stacked(cell: "formats.TableCell") -> str:
    """Return the text of a cell with the standard deviation in a second line."""
    mean, sign, deviation = cell.text.partition(" ± ")
    return replace(cell, text=mean).plain + (f"\n±{deviation}" if sign else "")


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]], pieces: re.Pattern[str]) -> list[int]:
    """Return the width of each column: its longest piece."""
    columns = zip(header, *rows, strict=True)
    return [max(cell_len(piece) for text in column for piece in pieces.split(text)) for column in columns]


def _fits(widths: Sequence[int]) -> bool:
    """Return whether a table of these columns fits; a blank follows each column."""
    return sum(widths) + len(widths) <= out.width


def _groups(widths: Sequence[int]) -> list[list[int]]:
    """Return the columns of each table: the first column and as many others as fit, in tables of similar widths."""
    others = range(1, len(widths))
    for tables in range(1, len(widths)):
        size = ceil(len(others) / tables)
        groups = [[0, *others[start : start + size]] for start in range(0, len(others), size)]
        if size == 1 or all(_fits([widths[at] for at in group]) for group in groups):
            return groups
    return [[0]]


def _shared(least: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return the width of each column: the least width and a share of the rest, first for columns that need little."""
    widths = list(least)
    for at in sorted(range(len(widths)), key=lambda at: whole[at] - least[at]):
        widths[at] += max(0, min(whole[at] - least[at], out.width - sum(widths) - len(widths)))
    return widths


def print_listing(
    header: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    right: Collection[str] = (),
    title: str = "",
    widths: Sequence[int | None] | None = None,
) -> None:
    """Print rows of plain cells in columns; the columns `right` are aligned to the right.

    If the table has more lines than the terminal, the header is repeated at the end.
    """
    rows = list(rows)
    lines = sum(max((str(cell).count("\n") for cell in row), default=0) + 1 for row in rows)
    listing = Table(
        title=escape(title),
        title_justify="left",
        header_style="bold",
        footer_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
        show_footer=out.is_terminal and lines > out.height,
    )
    for name, width in zip(header, widths or [None] * len(header), strict=True):
        justify: Literal["right", "left"] = "right" if name in right else "left"
        listing.add_column(Text(name), Text(name), justify=justify, overflow="fold", width=width)
    for row in rows:
        listing.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    out.print(listing)
