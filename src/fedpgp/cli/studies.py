"""What the commands of studies share: `fedpgp sweep`, `ablate`, `reproduce` and `tune`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpgp.cli.options import WorkOptions, new_name
from fedpgp.cli.printing import Session, err, print_json, print_plan, print_table

if TYPE_CHECKING:
    from fedpgp.results.formats import Table
    from fedpgp.studies.study import Study


def print_study(study: "Study", options: WorkOptions) -> None:
    """Check a study that is not to be run, and print its plan."""
    study.check()
    print_plan(study.plan(), study.distinct_cells, options.as_json)


def run_study(
    options: WorkOptions,
    begin: Callable[..., Any],
    resume: Callable[..., Any],
    tables: Callable[[Any], Iterable["Table"]],
    name: str | None = None,
) -> Path:
    """Begin or resume a study, print it, and return its directory.

    begin, resume: functions of the library; tables: of what they return; name: of a new directory, by default the
    command's.
    """
    command = str(click.get_current_context().info_name)
    directory = options.resume or options.output or new_name(name or command)
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
        err.print(f"written to {directory}", markup=False)
    return directory
