"""Code shared by the commands of studies: `fedpgp sweep`, `ablate`, `reproduce` and `tune`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpgp.cli.options import WorkOptions
from fedpgp.cli.printing import Session, print_json, print_plan, print_table, say

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
) -> Path:
    """Begin or resume a study, print it, and return its directory. A dry run only checks it and prints its plan.

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
    """
    command = str(click.get_current_context().info_name)
    directory = options.directory(name or command)
    if dry_run:
        study = begin(output=None)
        study.check()
        print_plan(study.plan(), study.distinct_cells, options.as_json)
        return directory
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
    return directory
