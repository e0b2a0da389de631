"""`fedpgp report`: one page about runs."""

from pathlib import Path
from typing import Annotated

import typer

from fedpgp.cli.options import Force, Quiet
from fedpgp.cli.printing import err, say
from fedpgp.reporting import ProgressBars, Silent


def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs or comparisons.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
    focus: Annotated[
        str | None, typer.Option("--focus", help="The method that is looked at closer.", show_default="the last")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", help="Directory for each figure as SVG, PDF, PNG and CSV, and the table as LaTeX."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Follow what is running: write the page again until all is finished.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write one page about runs: tables, curves, clients, confusions, what moved, costs and provenance.

    The page needs no network. What is damaged or not finished is named, and the rest is shown.

    Examples:
        fedpgp report out -o report.html
        fedpgp report out --focus fedpgp --figures figures
        fedpgp report out --live
    """
    if live and figures is not None:
        raise typer.BadParameter("--figures goes with finished runs; leave out --live", param_hint="--figures")
    from fedpgp.report.page import follow, write_report

    if live:
        say(f"open {output}; it follows the runs until they are finished, or until Ctrl-C")
        follow(runs, output, focus=focus, force=force)
    else:
        with ProgressBars(err) as bars:
            progress = Silent().progress if quiet else bars.progress
            gathered = write_report(runs, output, focus=focus, figures=figures, force=force, progress=progress)
        for fault in gathered.faults:
            say(f"fedpgp: not shown: {fault}")
    say(f"written to {output}" + (f" and {figures}" if figures else ""))
