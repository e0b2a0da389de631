"""`fedpgp compare`: several methods on the same task."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

import fedpgp
from fedpgp.cli import options
from fedpgp.cli.printing import Session, print_plan, print_result, tracked


def compare(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Names with commas between, or all: see fedpgp methods.",
            show_default="zero-shot,local,promptfl,fedpgp",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="How many: 3 means seeds 0, 1 and 2.", show_default="1")
    ] = None,
    costly_seeds: Annotated[
        int | None,
        typer.Option(
            "--costly-seeds",
            help="How many for the methods that go through the image tower or read class names for every image.",
            show_default="as --seeds",
        ),
    ] = None,
    dry_run: options.DryRun = False,
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
    """Run several methods on the same task and print the table.

    Tells first what it is going to do, and about how long that takes; --dry-run ends there, and keeps nothing but
    features of images. Writes one run directory per method and seed, the tables as comparison.md, .tex and .csv,
    runs.csv, path.csv, differences.csv, comparison.json, and the trade-off curves as comparison.svg and .png.

    After Ctrl-C, a crash or a full disk, --resume goes on after the last finished round.

    Examples:
        fedpgp compare --seeds 3
        fedpgp compare --methods promptfl,fedpgp --set fedpgp.mu=1 -o out
        fedpgp compare --resume out
    """
    from fedpgp.runs.execution import ExecutionOptions
    from fedpgp.runs.run import planned_comparison

    if resume is not None:
        options.check_resumed(resume)
    directory = resume or output or options.new_name("compare")
    with Session(directory, quiet) as session, tracked(session, None if dry_run else track) as reporter:
        execution = ExecutionOptions(
            workers=options.worker_count(workers), cache=cache, skip_bad_images=skip_bad_images, reporter=reporter
        )
        result: fedpgp.Comparison | str
        if resume is not None:
            result = fedpgp.resume(resume, methods=options.method_names(methods or ""), **execution)
        else:
            begin: Callable[..., fedpgp.Comparison | str] = (
                planned_comparison if dry_run else partial(fedpgp.compare, output=directory, force=force)
            )
            result = begin(
                None if methods is None else options.method_names(methods),
                1 if seeds is None else seeds,
                costly_seeds=costly_seeds,
                config=config,
                changes=options.all_changes(change, data, device, precision),
                settings=settings,
                **execution,
            )
    if isinstance(result, str):
        print_plan(result, as_json=as_json)
    else:
        print_result(result, directory, as_json)
