"""`fedpgp run`: one method with one seed."""

from pathlib import Path
from typing import Annotated

import click
import typer

import fedpgp
from fedpgp.cli import options
from fedpgp.cli.printing import Session, print_result, tracked


def run(
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", help="A name that fedpgp methods lists, or one of your own as path/to/file.py:Name."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed.", show_default="0")] = None,
    config: options.ConfigFile = None,
    data: options.DataSource = None,
    change: options.Changes = None,
    settings: options.Settings = None,
    output: options.Output = None,
    force: options.Force = False,
    resume: options.Resume = None,
    as_json: options.Json = False,
    workers: options.Workers = None,
    cache: options.Cache = None,
    skip_bad_images: options.SkipBadImages = False,
    device: options.Device = None,
    precision: options.Precision = None,
    track: options.Track = None,
    quiet: options.Quiet = False,
) -> None:
    """Run one method with one seed and write its run directory.

    After Ctrl-C, a crash or a full disk, --resume goes on after the last finished round.

    Examples:
        fedpgp run --method fedpgp
        fedpgp run --method fedpgp --seed 1 --set fedpgp.bottleneck=4 -o out
        fedpgp run --resume out
    """
    from fedpgp.runs.execution import ExecutionOptions

    if resume is not None:
        options.check_resumed(resume)
    directory = resume or output or options.new_name(f"{Path(method or '').name.replace(':', '-')}-seed-{seed or 0}")
    with Session(directory, quiet) as session, tracked(session, track) as reporter:
        execution = ExecutionOptions(
            workers=options.worker_count(workers), cache=cache, skip_bad_images=skip_bad_images, reporter=reporter
        )
        if resume is not None:
            comparison = fedpgp.resume(resume, methods=[] if method is None else [method], **execution)
        elif method is None:
            raise click.UsageError("Missing option '--method', or '--resume' with the directory of a stopped run")
        else:
            finished = fedpgp.run(
                method,
                seed or 0,
                config=config,
                changes=options.all_changes(change, data, device, precision),
                settings=settings,
                output=directory,
                force=force,
                **execution,
            )
            comparison = fedpgp.Comparison([finished])
    print_result(comparison, directory, as_json)
