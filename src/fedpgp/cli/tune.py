"""`fedpgp tune`: the search for hyperparameters."""

from pathlib import Path
from typing import Annotated

import click
import typer

from fedpgp.cli.options import (
    Cache,
    Changes,
    ConfigFile,
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
from fedpgp.cli.printing import Session, err, print_json, print_table


def tune(
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names with commas between: see fedpgp methods.", show_default="all"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Of every method; the first is the config.", show_default="16")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Of every trial, which is judged by their mean.", show_default="2")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="cm, hm, local, base or novel, on validation images.", show_default="cm"),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="TOML file whose sections take the place of the shipped ones."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="METHOD.FIELD=RANGE",
            help="One field: low..high, low..high:log, or one,two,three; may be repeated.",
        ),
    ] = None,
    config: ConfigFile = None,
    change: Changes = None,
    output: Output = None,
    force: Force = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with the search in DIR, with more --trials or as it was planned; of the other options only"
            " --workers, --cache-dir, --skip-bad-images, --json and --quiet go with it, and --methods for files.",
        ),
    ] = None,
    as_json: Json = False,
    workers: Workers = None,
    cache: Cache = None,
    skip_bad_images: SkipBadImages = False,
    quiet: Quiet = False,
) -> None:
    """Search for the settings of methods, with as many trials for each, and write them as a config file.

    A trial trains within the base classes and is judged on their validation images: half of the base classes play the
    novel ones, and the test split is not even read. Writes trials.csv and tuned.toml, which fedpgp compare --config
    takes.

    What is searched of each method stands in studies/tuning/spaces.toml of the package.

    Examples:
        fedpgp tune --methods promptfl,fedpgp --trials 8
        fedpgp tune --methods fedpgp --search fedpgp.mu=0.1..5:log -o tuned
        fedpgp tune --resume tuned
    """
    from fedpgp.studies.tuning import resume_tuning
    from fedpgp.studies.tuning import tune as search_settings
    from fedpgp.studies.tuning.table import table
    from fedpgp.studies.tuning.trials import checked_objective

    directory = resume or output or new_name("tune")
    with Session(directory, quiet, f"fedpgp tune --resume {directory}") as progress:
        if resume is not None:
            given = (seeds, objective, space, search or None, config, change or None, output, force or None)
            if any(setting is not None for setting in given):
                raise click.UsageError(f"--resume {resume} goes on with the settings of that search")
            found = resume_tuning(
                resume,
                trials=trials,
                methods=method_names(methods or ""),
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        else:
            found = search_settings(
                "all" if methods is None else method_names(methods),
                trials=16 if trials is None else trials,
                seeds=2 if seeds is None else seeds,
                objective=checked_objective(objective or "cm"),
                config=config,
                changes=change or (),
                space=space,
                search=search or (),
                output=directory,
                force=force,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
    if as_json:
        print_json(found.as_json())
    else:
        print_table(table(found))
        err.print(
            f"written to {directory}; use it with: fedpgp compare --config {directory / 'tuned.toml'}", markup=False
        )
