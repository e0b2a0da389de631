"""`fedpgp reproduce`: run the experiments of the paper."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import StudyOptions, with_options
from fedpgp.cli.options import DryRun, listed
from fedpgp.cli.printing import next_command, out
from fedpgp.cli.studies import run_study


@with_options(StudyOptions, "config", "data")
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a recipe; --list prints all names.", autocompletion=completion.of_names("experiments")
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the names and descriptions of the recipes.")] = False,
    dry_run: DryRun = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Directory that contains the known datasets.", show_default="data"),
    ] = None,
    embedded: Annotated[
        bool,
        typer.Option(
            "--embedded",
            help="Use the embedded pictograms and pictoclip. The experiment then takes minutes and needs no download.",
        ),
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods to run, separated by commas: names, or your own methods as path/to/file.py:Name.",
            autocompletion=completion.of_list("methods"),
            show_default="the methods of the recipe",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds for each cell of the table.")] = 3,
    *,
    options: StudyOptions,
) -> None:
    """Run an experiment of the paper, and print a table of the results.

    The command first checks everything and lists what is missing. Then it writes a comparison for each dataset
    or setting in the table, and the table as reproduction.md, .tex and .csv.

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
            where = "" if recipe.embedded else f" Not available with --embedded: {recipe.embedded_note}."
            out.print(f"{known}: {recipe.about}{where}", markup=False)
        next_command("reproduce", "base-to-novel", "--embedded")
        return
    if options.resume is None and name is None:
        raise click.UsageError("The recipe is missing. `fedpgp reproduce --list` prints the names of all recipes.")
    _ = options.changes  # raises an error if --backbone and --set differ
    changes = replace(options, backbone=None).changes
    asked: dict[str, Any] = {"data": data, "backbone": options.backbone, "embedded": embedded, "changes": changes}
    chosen = listed(methods)
    begin = partial(fedpgp.reproduce, name or "", **asked, methods=chosen, seeds=seeds)
    resume = partial(fedpgp.resume_reproduction, methods=chosen or ())
    run_study(options, begin, resume, tables, f"reproduce-{name}", dry_run=dry_run)
