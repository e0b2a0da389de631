"""`fedpgp tune`: search for hyperparameters."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import StudyOptions, with_options
from fedpgp.cli.options import listed
from fedpgp.cli.studies import run_study


@with_options(StudyOptions)
def tune(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods to tune, separated by commas. `fedpgp methods` lists all methods. With --resume,"
            " leave this option out, or give the files of your own methods again.",
            autocompletion=completion.of_list("methods"),
            show_default="all",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            help="Number of trials for each method. The first trial uses the config without changes. With --resume,"
            " this is the new total.",
            show_default="16",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", help="Number of seeds for each trial; the value of a trial is the mean over its seeds."
        ),
    ] = 2,
    objective: Annotated[
        str, typer.Option("--objective", help="Metric to maximize on validation images: cm, hm, local, base or novel.")
    ] = "cm",
    space: Annotated[
        Path | None,
        typer.Option(
            "--space",
            help="TOML file with search spaces. A section of this file replaces the same section of the built-in file.",
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="METHOD.FIELD=RANGE",
            help="Search range of one field: low..high, low..high:log, or a list such as 1,2,4. Can be repeated.",
        ),
    ] = None,
    *,
    options: StudyOptions,
) -> None:
    """Search for hyperparameters, with the same number of trials for each method, and write the best as a config file.

    In a trial, a method trains on half of the base classes. The other half serve as novel classes. Only validation
    images are used for evaluation, and the test split is never read. The command writes trials.csv, and tuned.toml for
    `fedpgp compare --config`.

    The search spaces of all methods are in studies/tuning/spaces.toml of the package.

    Examples:
        fedpgp tune --methods promptfl,fedpgp --trials 8
        fedpgp tune --methods fedpgp --search fedpgp.mu=0.1..5:log -o tuned
        fedpgp tune --resume tuned
    """
    import fedpgp
    from fedpgp.studies.tuning.table import table

    names = listed(methods)
    asked: dict[str, Any] = {
        "trials": 16 if trials is None else trials,
        "seeds": seeds,
        "objective": objective,
        **options.experiment,
        "space": space,
        "search": search or (),
    }
    run_study(
        options,
        partial(fedpgp.tune, "all" if names is None else names, **asked),
        partial(fedpgp.resume_tuning, trials=trials, methods=names or ()),
        lambda tuning: [table(tuning)],
        following=lambda directory: ("compare", "--config", directory / "tuned.toml"),
    )
