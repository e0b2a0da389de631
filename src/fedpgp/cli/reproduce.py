"""`fedpgp reproduce`: the experiments of the paper."""

from pathlib import Path
from typing import Annotated

import click
import typer

from fedpgp.cli.options import (
    Cache,
    Changes,
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
from fedpgp.cli.printing import Session, err, out, print_json, print_plan, print_table


def reproduce(
    name: Annotated[str | None, typer.Argument(help="Of a recipe: see --list.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the recipes, and do nothing else.")] = False,
    dry_run: DryRun = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Below which the known data sets lie.", show_default="data"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="A CLIP: a directory or a hub id.", show_default="the paper's ViT-B/16"),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="On pictograms with pictoclip: minutes, and nothing to fetch.")
    ] = False,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas between.", show_default="those of the recipe")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Of every cell.", show_default="3")] = None,
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
    """Run an experiment of the paper and print its table.

    Everything is checked before any work, and what is missing is named. Writes a comparison for each cell, and
    reproduction.md, .tex and .csv.

    Examples:
        fedpgp reproduce --list
        fedpgp reproduce base-to-novel --embedded
        fedpgp reproduce base-to-novel --data DIR --backbone openai/clip-vit-base-patch16 --seeds 3 -o out
    """
    from fedpgp import reproduce as run_recipe
    from fedpgp import resume_reproduction
    from fedpgp.report.reproduction import tables
    from fedpgp.studies.recipe import names, read_recipe
    from fedpgp.studies.reproduction import planned

    if listing:
        for known in names():
            recipe = read_recipe(known)
            where = "" if recipe.embedded else f" Not with --embedded: {recipe.embedded_note}."
            out.print(f"{known}: {recipe.about}{where}", markup=False)
        return
    given = (name, data, backbone, embedded or None, methods, seeds, change or None, output, force or None)
    if resume is not None and any(setting is not None for setting in (*given, dry_run or None)):
        raise click.UsageError(f"--resume {resume} goes on with the settings of that reproduction")
    if resume is None and name is None:
        raise click.UsageError("name a recipe: fedpgp reproduce --list has them")
    names_of = None if methods is None else method_names(methods)
    count = 3 if seeds is None else seeds
    if dry_run:
        assert name is not None, "there is no --resume beside it"
        print_plan(
            *planned(
                name,
                data=data,
                backbone=backbone,
                embedded=embedded,
                methods=names_of,
                seeds=count,
                changes=change or (),
            ),
            as_json,
        )
        return
    directory = resume or output or new_name(f"reproduce-{name}")
    with Session(directory, quiet) as progress:
        if name is None:
            found = resume_reproduction(
                directory,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        else:
            found = run_recipe(
                name,
                data=data,
                backbone=backbone,
                embedded=embedded,
                methods=names_of,
                seeds=count,
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
    for one in tables(found):
        print_table(one)
    err.print(f"written to {directory}", markup=False)
