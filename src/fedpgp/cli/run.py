"""`fedpgp run`: run one method with one seed."""

from pathlib import Path
from typing import Annotated

import click
import typer

import fedpgp
from fedpgp.cli import completion
from fedpgp.cli.option_groups import RunOptions, with_options
from fedpgp.cli.printing import Session, print_result, tracked


@with_options(RunOptions)
def run(
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="Method to run: a name from `fedpgp methods`, or your own method as path/to/file.py:Name.",
            autocompletion=completion.of_names("methods"),
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
    *,
    options: RunOptions,
) -> None:
    """Run one method with one seed and write its run directory.

    After Ctrl-C, a crash or a full disk, use --resume to continue after the last finished round.

    Examples:
        fedpgp run --method fedpgp
        fedpgp run --method fedpgp --seed 1 --set fedpgp.bottleneck=4 -o out
        fedpgp run --resume out
        fedpgp run --resume out --rounds +10
    """
    directory = options.directory(f"{Path(method or '').name.replace(':', '-')}-seed-{seed}")
    with Session(directory, options.quiet) as session, tracked(session, options.track) as reporter:
        execution = options.execution(reporter)
        if options.resume is not None:
            own = [] if method is None else [method]
            comparison = fedpgp.resume(options.resume, methods=own, more_rounds=options.more_rounds, **execution)
        elif method is None:
            raise click.UsageError(
                "Missing option '--method'. Add --method NAME, or --resume DIR with the directory of a stopped run."
            )
        else:
            finished = fedpgp.run(
                method, seed, **options.experiment, output=directory, force=options.force, **execution
            )
            comparison = fedpgp.Comparison([finished])
    print_result(comparison, directory, options.as_json)
