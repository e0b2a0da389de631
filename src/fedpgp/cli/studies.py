"""What the commands of studies share: `fedpgp sweep`, `ablate`, `reproduce` and `tune`."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpgp.cli.options import Cache, Force, Json, Output, Quiet, SkipBadImages, Workers, new_name, worker_count
from fedpgp.cli.printing import Session, err, print_json, print_plan, print_table

if TYPE_CHECKING:
    from fedpgp.results.formats import Table
    from fedpgp.studies.study import Study

Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Go on with what was stopped in DIR; of the other options only --workers, --cache-dir,"
        " --skip-bad-images, --json and --quiet go with it.",
    ),
]
BESIDE_RESUME = {"resume", "workers", "cache", "skip_bad_images", "as_json", "quiet"}


@dataclass(frozen=True)
class StudyOptions:
    """The options that every command of a study has."""

    output: Output = None
    force: Force = False
    resume: Resume = None
    as_json: Json = False
    workers: Workers = None
    cache: Cache = None
    skip_bad_images: SkipBadImages = False
    quiet: Quiet = False

    def check(self, *allowed: str) -> None:
        """Raise UsageError if --resume is given beside an option that it does not take. allowed: further ones."""
        context = click.get_current_context()
        for parameter in context.command.params if self.resume is not None else ():
            given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
            if given and parameter.name not in {*BESIDE_RESUME, *allowed}:
                raise click.UsageError(
                    f"--resume {self.resume} goes on with the settings of that study: leave out"
                    f" {parameter.get_error_hint(context)}"
                )


def with_study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `StudyOptions`, in the place of its last parameter `options`."""
    *own, _ = inspect.signature(command).parameters.values()
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(StudyOptions)
    ]

    @wraps(command)
    def complete(**values: Any) -> None:
        options = StudyOptions(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(**values, options=options)

    complete.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    complete.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return complete


def print_study(study: "Study", options: StudyOptions) -> None:
    """Check a study that is not to be run, and print its plan."""
    study.check()
    print_plan(study.plan(), study.distinct_cells, options.as_json)


def run_study(
    options: StudyOptions,
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
        execution = {
            "workers": worker_count(options.workers),
            "cache": options.cache,
            "skip_bad_images": options.skip_bad_images,
            "reporter": progress,
        }
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
