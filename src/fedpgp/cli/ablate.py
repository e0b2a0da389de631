"""`fedpgp ablate`: one thing varied at a time."""

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


def ablate(
    studies: Annotated[
        str | None,
        typer.Option("--studies", help="Names with commas between, of those in the file.", show_default="all"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="TOML file with a section for each study; in each line a setting's label and a list of changes.",
            show_default="those of FedPGP",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="The one that is studied.", show_default="fedpgp")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Of every setting.", show_default="3")] = None,
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
    """Vary one thing of a method at a time, and print what each setting gives.

    Everything else is as the config has it. Writes a comparison for each setting, ablation.md, .tex and .csv, and a
    figure for each study. The studies of FedPGP stand in studies/ablations.toml of the package.

    Examples:
        fedpgp ablate --studies mu,bottleneck
        fedpgp ablate --file my-studies.toml --method promptfl
        fedpgp ablate --resume out
    """
    from fedpgp import ablate as run_studies
    from fedpgp import resume_ablation
    from fedpgp.report.ablation import table
    from fedpgp.studies.ablation import planned

    given = (studies, file, method, seeds, config, change or None, output, force or None, dry_run or None)
    if resume is not None and any(setting is not None for setting in given):
        raise click.UsageError(f"--resume {resume} goes on with the settings of those ablations")
    name, names = method or "fedpgp", None if studies is None else method_names(studies)
    count = 3 if seeds is None else seeds
    if dry_run:
        print_plan(*planned(name, studies=names, file=file, seeds=count, config=config, changes=change or ()), as_json)
        return
    directory = resume or output or new_name("ablate")
    with Session(directory, quiet) as progress:
        if resume is not None:
            found = resume_ablation(
                resume,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        else:
            found = run_studies(
                name,
                studies=names,
                file=file,
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
    for study in found.settings:
        print_table(table(found, study))
    err.print(f"written to {directory}", markup=False)
