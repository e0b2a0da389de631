"""`fedpgp sweep`: run methods on every combination of values."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import StudyOptions, with_options
from fedpgp.cli.options import DryRun, listed
from fedpgp.cli.studies import run_study


@with_options(StudyOptions)
def sweep(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[GRID.toml]",
            help="TOML file with the grid in a section \\[axes]. The file can set `methods` and `config` before this"
            " section.",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="SECTION.KEY=A,B,C",
            help="Setting that is varied, and its values. Can be repeated: each setting is one axis of the grid.",
            autocompletion=completion.of_settings,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods to run, separated by commas: names, or your own methods as path/to/file.py:Name.",
            autocompletion=completion.of_list("methods"),
            show_default="zero-shot,local,promptfl,fedpgp",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds for each combination.")] = 1,
    dry_run: DryRun = False,
    *,
    options: StudyOptions,
) -> None:
    """Run methods on every combination of values, and print the table.

    The command first checks every combination. Then it writes a comparison for each combination, the table as sweep.md
    and .tex, a row for every run in sweep.csv, and a figure for each setting whose values are numbers.

    Examples:
        fedpgp sweep --grid fedpgp.mu=0.1,1 --grid task.shots=2,8 --seeds 3
        fedpgp sweep my-grid.toml -o out
        fedpgp sweep --resume out
    """
    import fedpgp
    from fedpgp.report.grid import table

    if options.resume is None and (file is None) == (not grid):
        raise click.UsageError(
            "The grid must be either a file, or --grid SECTION.KEY=A,B,C once or more. Use for example"
            " --grid fedpgp.mu=0.1,1."
        )
    names = listed(methods)
    asked: dict[str, Any] = {"methods": names, "seeds": seeds, **options.experiment}
    run_study(
        options,
        partial(fedpgp.sweep, file or grid or (), **asked),
        partial(fedpgp.resume_sweep, methods=names or ()),
        lambda study: [table(study, part) for part in study.parts],
        dry_run=dry_run,
    )
