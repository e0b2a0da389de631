"""`fedpgp sweep`: methods on every combination of values."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpgp.cli.options import BackboneName, Changes, ConfigFile, DryRun, WorkOptions, all_changes, listed, with_options
from fedpgp.cli.studies import run_study


@with_options(WorkOptions)
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
    seeds: Annotated[int, typer.Option("--seeds", help="Of every cell.")] = 1,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    backbone: BackboneName = None,
    change: Changes = None,
    *,
    options: WorkOptions,
) -> None:
    """Run methods on every combination of values, and print the table.

    Every combination is checked before any work. Writes a comparison for each, sweep.md, .tex and .csv (a row for every
    run), and a figure for each axis of numbers.

    Examples:
        fedpgp sweep --grid fedpgp.mu=0.1,1 --grid task.shots=2,8 --seeds 3
        fedpgp sweep my-grid.toml -o out
        fedpgp sweep --resume out
    """
    import fedpgp
    from fedpgp.report.grid import table

    if options.resume is None and (file is None) == (not grid):
        raise click.UsageError("name a grid: either a file, or --grid section.key=a,b,c once or more")
    changes = all_changes(change, backbone=backbone)
    asked: dict[str, Any] = {"methods": listed(methods), "seeds": seeds, "config": config, "changes": changes}
    run_study(
        options,
        partial(fedpgp.sweep, file or grid or (), **asked),
        fedpgp.resume_sweep,
        lambda study: [table(study, part) for part in study.parts],
        dry_run=dry_run,
    )
