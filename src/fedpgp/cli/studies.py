"""What the commands of studies share: `fedpgp sweep`, `ablate`, `reproduce` and `tune`."""

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
    """Begin or resume a study, print it, and return its directory; a dry run only checks it and prints its plan.

    begin, resume: functions of the library; tables: of what they return; name: of a new directory, by default the
    command's.
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
        say(f"written to {directory}")
    return directory
