"""`fedpgp tune`: the search for hyperparameters."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpgp.cli.options import BackboneName, Changes, ConfigFile, WorkOptions, all_changes, listed, with_options
from fedpgp.cli.printing import say
from fedpgp.cli.studies import run_study


class TuneOptions(WorkOptions):
    """Those of all studies; own methods are named again to go on, and trials can be added."""

    beside_resume = WorkOptions.beside_resume | {"methods", "trials"}


@with_options(TuneOptions)
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
    backbone: BackboneName = None,
    change: Changes = None,
    *,
    options: TuneOptions,
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
    import fedpgp
    from fedpgp.studies.tuning.table import table

    names = listed(methods)
    asked: dict[str, Any] = {
        "trials": 16 if trials is None else trials,
        "seeds": seeds,
        "objective": objective,
        "config": config,
        "changes": all_changes(change, backbone=backbone),
        "space": space,
        "search": search or (),
    }
    directory = run_study(
        options,
        partial(fedpgp.tune, "all" if names is None else names, **asked),
        partial(fedpgp.resume_tuning, trials=trials, methods=names or ()),
        lambda tuning: [table(tuning)],
    )
    if not options.as_json:
        say(f"use it with: fedpgp compare --config {directory / 'tuned.toml'}")
