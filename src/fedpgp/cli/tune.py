"""`fedpgp tune`: the search for hyperparameters."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpgp.cli.options import Changes, ConfigFile, WorkOptions, method_names, with_options
from fedpgp.cli.printing import err
from fedpgp.cli.studies import run_study


@with_options(WorkOptions)
def tune(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Names with commas between: see fedpgp methods. With --resume, only the files of your own methods.",
            show_default="all",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            help="Of every method; the first is the config. With --resume, the number after which it ends.",
            show_default="16",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Of every trial, which is judged by their mean.")] = 2,
    objective: Annotated[
        str, typer.Option("--objective", help="cm, hm, local, base or novel, on validation images.")
    ] = "cm",
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
    *,
    options: WorkOptions,
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
    from fedpgp import resume_tuning
    from fedpgp import tune as search_settings
    from fedpgp.studies.tuning.table import table

    options.check_resumed("methods", "trials")
    asked: dict[str, Any] = {
        "trials": 16 if trials is None else trials,
        "seeds": seeds,
        "objective": objective,
        "config": config,
        "changes": change or (),
        "space": space,
        "search": search or (),
    }
    directory = run_study(
        options,
        partial(search_settings, "all" if methods is None else method_names(methods), **asked),
        partial(resume_tuning, trials=trials, methods=method_names(methods or "")),
        lambda tuning: [table(tuning)],
    )
    if not options.as_json:
        err.print(f"use it with: fedpgp compare --config {directory / 'tuned.toml'}", markup=False)
