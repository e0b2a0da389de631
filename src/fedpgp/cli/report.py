"""`fedpgp report`: write one HTML page about runs."""

import atexit
import gc
import os
from pathlib import Path
from typing import Annotated

import typer

from fedpgp.cli.options import Force, Quiet
from fedpgp.cli.printing import err, next_command, say
from fedpgp.reporting import ProgressBars, Silent


def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs and comparisons.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file for the report.")] = Path("report.html"),
    focus: Annotated[
        str | None, typer.Option("--focus", help="Method that is described in more detail.", show_default="the last")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures", help="Directory for the figures as SVG, PDF, PNG and CSV, and for the table as LaTeX."
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Update the page after every round until all runs are finished.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about runs.

    The page shows tables, curves, the accuracy of each client and class, confused classes, images that clients get
    wrong and right, costs and provenance. The page needs no network. For an unfinished run, the page shows only the
    learning curve. For a damaged run, the page shows only the error message.

    Examples:
        fedpgp report out -o report.html
        fedpgp report out --focus fedpgp --figures figures
        fedpgp report out --live
    """
    if live and figures is not None:
        raise typer.BadParameter("--figures needs finished runs. Leave out --live.", param_hint="--figures")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # with small matrices, several threads take a second more
    gc.disable()  # imports and a report leave little garbage, and looking for it takes a second, here and at the exit
    atexit.register(gc.freeze)
    try:
        from fedpgp.report.page.write import follow, write_report

        if live:
            gc.enable()
            say(f"Open {output}. The page is updated until the runs are finished, or until Ctrl-C.")
            follow(runs, output, focus=focus, force=force)
        else:
            with ProgressBars(err) as bars:
                progress = Silent().progress if quiet else bars.progress
                gathered = write_report(runs, output, focus=focus, figures=figures, force=force, progress=progress)
            for fault in gathered.faults:
                say(f"fedpgp: The report leaves out a run. {fault}")
    finally:
        gc.enable()
    say(f"The report is in {output}" + (f", and the figures are in {figures}." if figures else "."))
    next_command("show", runs[0], "--format", "latex")
