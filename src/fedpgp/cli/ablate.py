"""`fedpgp ablate`: vary one factor at a time."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import StudyOptions, with_options
from fedpgp.cli.options import DryRun, listed
from fedpgp.cli.studies import run_study


@with_options(StudyOptions)
def ablate(
    studies: Annotated[
        str | None,
        typer.Option("--studies", help="Names of studies in the file, separated by commas.", show_default="all"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="TOML file with one section for each study. Each line of a section has the label of a setting and a"
            " list of changes.",
            show_default="the studies of FedPGP",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Method that is studied: a name, or your own method as path/to/file.py:Name.",
            autocompletion=completion.of_names("methods"),
        ),
    ] = "fedpgp",
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds for each setting.")] = 3,
    dry_run: DryRun = False,
    *,
    options: StudyOptions,
) -> None:
    """Vary one factor of a method at a time, and print the results of each setting.

    All other values come from the config. The command writes a comparison for each setting, the tables as ablation.md,
    .tex and .csv, and a figure for each study. The studies of FedPGP are in studies/ablations.toml of the package.

    Examples:
        fedpgp ablate --studies mu,bottleneck
        fedpgp ablate --file my-studies.toml --method promptfl
        fedpgp ablate --resume out
    """
    import fedpgp
    from fedpgp.report.ablation import table

    asked: dict[str, Any] = {"file": file, "seeds": seeds, **options.experiment}
    run_study(
        options,
        partial(fedpgp.ablate, method, studies=listed(studies), **asked),
        partial(fedpgp.resume_ablation, methods=[method]),
        lambda ablation: [table(ablation, study) for study in ablation.settings],
        dry_run=dry_run,
    )
