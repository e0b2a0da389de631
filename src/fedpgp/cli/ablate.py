"""`fedpgp ablate`: one thing varied at a time."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpgp.cli.options import BackboneName, Changes, ConfigFile, DryRun, WorkOptions, all_changes, listed, with_options
from fedpgp.cli.studies import run_study


@with_options(WorkOptions)
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
    method: Annotated[str, typer.Option("--method", "-m", help="The one that is studied.")] = "fedpgp",
    seeds: Annotated[int, typer.Option("--seeds", help="Of every setting.")] = 3,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    backbone: BackboneName = None,
    change: Changes = None,
    *,
    options: WorkOptions,
) -> None:
    """Vary one thing of a method at a time, and print what each setting gives.

    Everything else is as the config has it. Writes a comparison for each setting, ablation.md, .tex and .csv, and a
    figure for each study. The studies of FedPGP stand in studies/ablations.toml of the package.

    Examples:
        fedpgp ablate --studies mu,bottleneck
        fedpgp ablate --file my-studies.toml --method promptfl
        fedpgp ablate --resume out
    """
    import fedpgp
    from fedpgp.report.ablation import table

    changes = all_changes(change, backbone=backbone)
    asked: dict[str, Any] = {"file": file, "seeds": seeds, "config": config, "changes": changes}
    run_study(
        options,
        partial(fedpgp.ablate, method, studies=listed(studies), **asked),
        fedpgp.resume_ablation,
        lambda ablation: [table(ablation, study) for study in ablation.settings],
        dry_run=dry_run,
    )
