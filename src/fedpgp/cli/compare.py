"""`fedpgp compare`: run several methods on the same task."""

from typing import Annotated, Any

import typer

import fedpgp
from fedpgp.cli import completion
from fedpgp.cli.option_groups import RunOptions, with_options
from fedpgp.cli.options import DryRun, listed
from fedpgp.cli.printing import Session, print_plan, print_result, tracked


@with_options(RunOptions)
def compare(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods to compare, separated by commas, or the word all. `fedpgp methods` lists all methods.",
            autocompletion=completion.of_list("methods"),
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
    estimate, and writes only image features to the cache. Otherwise it writes one run directory per method and seed.
    It also writes comparison.html (a page that you can send), the tables (comparison.md, .tex and .csv), the trade-off
    curves (comparison.svg, .pdf and .png), and the files runs.csv, path.csv, differences.csv and comparison.json.

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
        if options.resume is not None:
            own = listed(methods) or ()
            comparison = fedpgp.resume(options.resume, methods=own, more_rounds=options.more_rounds, **execution)
        else:
            asked: dict[str, Any] = {"seeds": seeds, "costly_seeds": costly_seeds, **options.experiment, **execution}
            if dry_run:
                print_plan(planned_comparison(listed(methods), **asked), as_json=options.as_json)
                return
            comparison = fedpgp.compare(listed(methods), **asked, output=directory, force=options.force)
    print_result(comparison, directory, options.as_json)
