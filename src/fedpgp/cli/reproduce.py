"""`fedpgp reproduce`: the experiments of the paper."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpgp.cli.options import BackboneName, Changes, DryRun, WorkOptions, all_changes, listed, with_options
from fedpgp.cli.printing import out
from fedpgp.cli.studies import run_study


@with_options(WorkOptions)
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Of a recipe: see --list.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the recipes, and do nothing else.")] = False,
    dry_run: DryRun = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Below which the known data sets lie.", show_default="data"),
    ] = None,
    backbone: BackboneName = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="On pictograms with pictoclip: minutes, and nothing to fetch.")
    ] = False,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas between.", show_default="those of the recipe")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Of every cell.")] = 3,
    change: Changes = None,
    *,
    options: WorkOptions,
) -> None:
    """Run an experiment of the paper and print its table.

    Everything is checked before any work, and what is missing is named. Writes a comparison for each cell, and
    reproduction.md, .tex and .csv.

    Examples:
        fedpgp reproduce --list
        fedpgp reproduce base-to-novel --embedded
        fedpgp reproduce base-to-novel --data DIR --backbone openai/clip-vit-base-patch16 --seeds 3 -o out
    """
    import fedpgp
    from fedpgp.report.reproduction import tables
    from fedpgp.studies.recipe import names, read_recipe

    if listing:
        for known in names():
            recipe = read_recipe(known)
            where = "" if recipe.embedded else f" Not with --embedded: {recipe.embedded_note}."
            out.print(f"{known}: {recipe.about}{where}", markup=False)
        return
    if options.resume is None and name is None:
        raise click.UsageError("name a recipe: fedpgp reproduce --list has them")
    all_changes(change, backbone=backbone)  # raises where they differ
    places: dict[str, Any] = {"data": data, "backbone": backbone, "embedded": embedded}
    begin = partial(fedpgp.reproduce, name or "", **places, methods=listed(methods), seeds=seeds, changes=change or ())
    run_study(options, begin, fedpgp.resume_reproduction, tables, f"reproduce-{name}", dry_run=dry_run)
