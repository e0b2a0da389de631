"""Writing of a report: one HTML file that needs no server, and figures for a paper."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from fedpgp.errors import ConfigError, OutputError
from fedpgp.report.page.collect import Gathered, gather
from fedpgp.report.page.html import GENERATOR, Part, Section, page
from fedpgp.report.page.sections import Progress, drawn, learning_curves, section
from fedpgp.report.style import write_chart
from fedpgp.results import formats
from fedpgp.results.run import Comparison
from fedpgp.runtime.files import write

REST = 2.0  # seconds between two checks of the running runs
TITLE = "Federated prompt learning: results of the runs"
# Packing the JavaScript of Vega, Vega-Lite and vega-embed takes a second, so another process does it meanwhile.
PACK = """import sys, vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode())"""


def write_report(
    given: Sequence[Path],
    output: Path,
    *,
    focus: str | None = None,
    figures: Path | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Gathered:
    """Write a page about all runs of some directories. The page lists what it cannot show.

    Parameters
    ----------
    given
        Directories of runs or comparisons, or directories that contain them.
    output
        HTML file of the page.
    focus
        Name of the method that is shown in detail; None takes the last method.
    figures
        Directory for each figure as SVG, PDF, PNG and CSV, and for the tables as LaTeX; None writes none of them.
    force
        Replace a file that is not a report.
    progress
        Function that is called with a description, the number of finished steps, their total, and a detail.

    Raises
    ------
    FedPGPError
        Before any work, if there is no run to show or the page cannot be written.
    """
    _check(output, force)
    gathered = gather(given)
    sections = _write(gathered, output, focus, False, progress)
    if figures is not None:
        _write_figures(sections, figures, progress)
    return gathered


def follow(
    given: Sequence[Path], output: Path, *, focus: str | None = None, force: bool = False, rest: float = REST
) -> None:
    """Write the page again after each new round until all runs are finished; meanwhile the page reloads itself.

    Parameters
    ----------
    given
        Directories of runs or comparisons, or directories that contain them.
    output
        HTML file of the page.
    focus
        Name of the method that is shown in detail; None takes the last method.
    force
        Replace a file that is not a report.
    rest
        Seconds between two checks of the running runs.
    """
    _check(output, force)
    before = None
    while True:
        gathered = gather(given)
        state = {name: len(records) for name, records in gathered.going.items()}
        if state != before:
            _write(gathered, output, focus, bool(state), lambda *_: None)
            before = state
        if not state:
            return
        time.sleep(rest)


def _write(gathered: Gathered, output: Path, focus: str | None, live: bool, progress: Progress) -> list[Section]:
    known = {run.method for part in gathered.parts for run in part.values()}
    if focus is not None and focus not in known:
        raise ConfigError(
            where="focus", allowed="a method of the runs", got=focus, remedy=f"Use one of {', '.join(sorted(known))}"
        )
    with ThreadPoolExecutor(1) as other:
        packing = other.submit(_script)
        sections = [section(part, gathered.going, focus, not live, progress) for part in gathered.parts]
        if not sections:
            sections = [_running(gathered, progress)]
        script = packing.result()
    text = page(
        TITLE,
        sections,
        made=time.strftime("%Y-%m-%d %H:%M"),
        faults=gathered.faults,
        going={name: len(records) for name, records in gathered.going.items()},
        reload=REST if live else 0,
        script=script,
    )
    write(output, text.encode())
    return sections


@cache
def _script() -> str:
    return subprocess.run([sys.executable, "-c", PACK], capture_output=True, check=True).stdout.decode()


def _running(gathered: Gathered, progress: Progress) -> Section:
    """Return the section about runs of which none is finished."""
    notes = list[str]()
    parts = drawn({"rounds": learning_curves(Comparison([]), gathered.going)}, {}, notes, progress)
    return Section("Running", parts or [Part("notes", "What is not shown", lines=notes)])


def _write_figures(sections: Sequence[Section], directory: Path, progress: Progress) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for at, one in enumerate(sections):
        prefix = f"{at}-" if len(sections) > 1 else ""
        for done, part in enumerate(one.parts):
            progress("files", done, len(one.parts), part.name)
            if part.chart is not None and part.frame is not None:
                write_chart(directory, prefix + part.name, part.chart, ("svg", "pdf", "png"))
                write(directory / f"{prefix}{part.name}.csv", formats.frame_to_csv(part.frame).encode())
            if part.name == "results" and part.table is not None:
                write(directory / f"{prefix}table.tex", formats.latex(part.table).encode())
        progress("files", len(one.parts), len(one.parts), "")


def _check(output: Path, force: bool) -> None:
    if output.is_dir():
        raise OutputError(
            "the output is a directory", where=f"{output}", remedy="Name a file with -o, such as -o report.html"
        )
    if output.exists() and not force:
        with output.open("rb") as file:
            if f'content="{GENERATOR}'.encode() not in file.read(600):
                raise OutputError(
                    "the file exists and is not a report",
                    where=f"{output}",
                    remedy="Name another file with -o, or replace it with --force",
                )
    if not output.absolute().parent.is_dir():
        raise OutputError(
            "the directory of the output does not exist",
            where=f"{output}",
            remedy=f"Create it with `mkdir -p {output.parent}`, or name another file with -o",
        )
