"""Code shared by the commands of studies: `fedpgp sweep`, `ablate`, `reproduce` and `tune`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpgp.cli.option_groups import WorkOptions
from fedpgp.cli.printing import Session, next_command, print_json, print_plan, print_table, report_of, say

if TYPE_CHECKING:
    from fedpgp.results.formats import Table


def run_study(
    options: WorkOptions,
    begin: Callable[..., Any],
    resume: Callable[..., Any],
    tables: Callable[[Any], Iterable["Table"]],
    name: str | None = None,
    *,
    dry_run: bool = False,
    following: Callable[[Path], Sequence[object]] = report_of,
) -> None:
    """Begin or resume a study, and print it and the next command. A dry run only checks it and prints its plan.

    Parameters
    ----------
    options
        Options of the command.
    begin, resume
        Functions of the library that return a study.
    tables
        Returns the tables of a study.
    name
        Name of a new directory; None takes the name of the command.
    dry_run
        Print the plan and stop.
    following
        Returns the words of the next command for the directory of the study.
    """
    command = str(click.get_current_context().info_name)
    directory = options.directory(name or command)
    if dry_run:
        study = begin(output=None)
        study.check()
        print_plan(study.plan(), study.distinct_cells, options.as_json)
        return
    again = None if options.resume is None else f"fedpgp {command} --resume {directory}"
    with Session(directory, options.quiet, again) as progress:
        execution = options.execution(progress)
        if options.resume is not None:
            study = resume(directory, **execution)
        else:
            study = begin(output=directory, force=options.force, **execution)
    if options.as_json:
        print_json(study.as_json())
    else:
        for table in tables(study):
            print_table(table)
        say(f"The results are in {directory}.")
        next_command(*following(directory))
