"""`fedpgp compare`: run several methods on the same task."""

from typing import Annotated, Any

import typer

import fedpgp
from fedpgp.cli.options import DryRun, RunOptions, listed, with_options
from fedpgp.cli.printing import Session, print_plan, print_result, tracked


@with_options(RunOptions)
def compare(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods to compare, separated by commas, or the word all. `fedpgp methods` lists all methods.",
            show_default="zero-shot,local,promptfl,fedpgp",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds: 3 means seeds 0, 1 and 2.")] = 1,
    costly_seeds: Annotated[
        int | None,
        typer.Option(
            "--costly-seeds",
            help="Number of seeds for methods that train through the image tower, or encode the class names for each"
            " image.",
            show_default="same as --seeds",
        ),
    ] = None,
    dry_run: DryRun = False,
    *,
    options: RunOptions,
) -> None:
    """Run several methods on the same task and print the table.

    The command first prints the plan and an estimate of the time. With --dry-run, the command stops after this
    estimate, and writes only image features to the cache. Otherwise it writes one run directory per method and seed,
    the tables as comparison.md, .tex and .csv, runs.csv, path.csv, differences.csv, comparison.json, and the trade-off
    curves as comparison.svg, .pdf and .png.

    After Ctrl-C, a crash or a full disk, use --resume to continue after the last finished round.

    To show the result to others, send comparison.html, one page with the table, the curves and what differs.

    Examples:
        fedpgp compare --seeds 3
        fedpgp compare --methods promptfl,fedpgp --set fedpgp.mu=1 -o out
        fedpgp compare --resume out
    """
    from fedpgp.runs.run import planned_comparison

    directory = options.directory("compare")
    with Session(directory, options.quiet) as session, tracked(session, () if dry_run else options.track) as reporter:
        execution = options.execution(reporter)
        asked: dict[str, Any] = {"seeds": seeds, "costly_seeds": costly_seeds, **options.experiment}
        if options.resume is not None:
            own = listed(methods) or ()
            comparison = fedpgp.resume(options.resume, methods=own, more_rounds=options.more_rounds, **execution)
        elif dry_run:
            print_plan(planned_comparison(listed(methods), **asked, **execution), as_json=options.as_json)
            return
        else:
            comparison = fedpgp.compare(listed(methods), **asked, output=directory, force=options.force, **execution)
    print_result(comparison, directory, options.as_json)
