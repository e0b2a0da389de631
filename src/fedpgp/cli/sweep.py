"""`fedpgp sweep`: methods on every combination of values."""

from pathlib import Path
from typing import Annotated

import click
import typer

from fedpgp.cli.options import (
    Cache,
    Changes,
    ConfigFile,
    DryRun,
    Force,
    Json,
    Output,
    Quiet,
    SkipBadImages,
    Workers,
    method_names,
    new_name,
    worker_count,
)
from fedpgp.cli.printing import Session, err, print_json, print_plan, print_table


def sweep(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[GRID.toml]", help="A grid in a file: [axes], and methods and config before it."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="SECTION.KEY=A,B,C", help="An axis with its values; may be repeated."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names with commas between.", show_default="zero-shot,local,promptfl,fedpgp"),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Of every cell.", show_default="1")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    change: Changes = None,
    output: Output = None,
    force: Force = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with what was stopped in DIR; of the other options only --workers, --cache-dir,"
            " --skip-bad-images, --json and --quiet go with it.",
        ),
    ] = None,
    as_json: Json = False,
    workers: Workers = None,
    cache: Cache = None,
    skip_bad_images: SkipBadImages = False,
    quiet: Quiet = False,
) -> None:
    """Run methods on every combination of values, and print the table.

    Every combination is checked before any work. Writes a comparison for each, sweep.md, .tex and .csv (a row for every
    run), and a figure for each axis of numbers.

    Examples:
        fedpgp sweep --grid fedpgp.mu=0.1,1 --grid task.shots=2,8 --seeds 3
        fedpgp sweep my-grid.toml -o out
        fedpgp sweep --resume out
    """
    from fedpgp import resume_sweep
    from fedpgp import sweep as run_grid
    from fedpgp.report.grid import table
    from fedpgp.studies.sweep import planned

    given = (file, grid or None, methods, seeds, config, change or None, output, force or None, dry_run or None)
    if resume is not None and any(setting is not None for setting in given):
        raise click.UsageError(f"--resume {resume} goes on with the settings of that grid")
    if resume is None and (file is None) == (not grid):
        raise click.UsageError("name a grid: either a file, or --grid section.key=a,b,c once or more")
    names = None if methods is None else method_names(methods)
    count = 1 if seeds is None else seeds
    if dry_run:
        print_plan(
            *planned(file or grid or (), methods=names, seeds=count, config=config, changes=change or ()), as_json
        )
        return
    directory = resume or output or new_name("sweep")
    with Session(directory, quiet) as progress:
        if resume is not None:
            found = resume_sweep(
                resume,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        else:
            found = run_grid(
                file or grid or (),
                methods=names,
                seeds=count,
                config=config,
                changes=change or (),
                output=directory,
                force=force,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
    if as_json:
        print_json(found.as_json())
        return
    for part in found.grid.parts:
        print_table(table(found, part))
    err.print(f"written to {directory}", markup=False)
