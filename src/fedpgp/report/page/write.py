"""Writing of a report: one HTML file that needs no server, and figures for a paper."""

import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from altair.typing import ChartType
from jinja2 import Environment, PackageLoader

from fedpgp.errors import ConfigError, FedPGPError, OutputError
from fedpgp.report import charts, frames, tables
from fedpgp.report.comparison import all_tables
from fedpgp.report.page import run_details
from fedpgp.report.page.collect import Gathered, gather
from fedpgp.report.style import spec_of, write_chart
from fedpgp.results import formats
from fedpgp.results.run import Comparison, Run
from fedpgp.runtime.files import write
from fedpgp.runtime.version import __version__

GENERATOR = "fedpgp report"
REST = 2.0  # seconds between two checks of the running runs
Progress = Callable[[str, int, int, str], None]
Plan = tuple[
    Callable[[], pd.DataFrame], Callable[[pd.DataFrame], ChartType]
]  # functions that return the data and the chart


@dataclass(frozen=True)
class Figure:
    """Figure of a page.

    Attributes
    ----------
    name
        Name of its files.
    title
        Title of the figure.
    text
        Caption of the figure.
    frame
        Data of the figure.
    chart
        Altair chart.
    """

    name: str
    title: str
    text: str
    frame: pd.DataFrame
    chart: ChartType


@dataclass(frozen=True)
class Section:
    """Section of a page about one task.

    Attributes
    ----------
    heading
        Description of the task.
    tables
        Tables of the comparison.
    figures
        Figures.
    focus
        Name of the method that is shown in detail.
    wrong
        Images that clients of this method get wrong.
    costs
        Rows of the table of costs.
    provenance
        Rows of the table of runs.
    notes
        Messages about details that cannot be shown.
    latex
        The first table as LaTeX.
    """

    heading: str
    tables: Sequence[formats.Table]
    figures: Sequence[Figure]
    focus: str = ""
    wrong: Sequence[dict[str, Any]] = ()
    costs: Sequence[dict[str, Any]] = ()
    provenance: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    latex: str = ""


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
    sections = [_section(part, gathered.going, focus, not live, progress) for part in gathered.parts]
    if not sections:
        notes = list[str]()
        plans = {"rounds": _learning_curves(Comparison([]), gathered.going)}
        sections = [Section("Running", [], _figures(plans, {}, notes, progress), notes=notes)]
    write(output, _page(sections, gathered, live).encode())
    return sections


def _section(
    part: Mapping[Path, Run], going: Mapping[str, frames.Records], focus: str | None, whole: bool, progress: Progress
) -> Section:
    comparison, notes = Comparison(list(part.values())), list[str]()
    method = focus if focus in comparison.methods else comparison.methods[-1]
    run, others = comparison.of(method)[0], tables.others_title(comparison)
    plans: dict[str, Plan] = {
        "tradeoff": (lambda: frames.tradeoff(comparison), partial(charts.tradeoff, others=others)),
        "rounds": _learning_curves(comparison, going),
        "clients": (lambda: frames.clients(comparison), charts.clients),
        "client-by-class": (lambda: frames.client_by_class(run), charts.client_by_class),
        "classes": (lambda: frames.by_class(run), charts.by_class),
        "confusion": (lambda: frames.confusion(run), charts.confusion),
        "cosines": (lambda: frames.cosines(comparison), partial(charts.curves, unit="cosine")),
        "singular-values": (lambda: frames.singular_values(run), charts.singular_values),
    }
    model = None
    if whole:
        with _noting(notes, f"text features and images of {method}"):
            model = run_details.first_model(run)
            plans["text-features"] = (partial(run_details.text_features, run, model), charts.text_features)
    figures = _figures(plans, {"method": method, "others": others}, notes, progress)
    wrong: list[dict[str, Any]] = []
    if model is not None:
        with _noting(notes, f"images that clients of {method} get wrong"):
            wrong = run_details.wrong(run, model)
    shown: list[formats.Table] = []
    with _noting(notes, "tables"):  # runs across machines have no answers to resample
        shown = all_tables(comparison, None if focus is None else method)
    return Section(
        heading=tables.caption(comparison),
        tables=shown,
        figures=figures,
        focus=method,
        wrong=wrong,
        costs=frames.costs(comparison).to_dict("records"),
        provenance=[_provenance(one, directory) for directory, one in part.items()],
        notes=notes,
        latex=formats.latex(shown[0]) if shown else "",
    )


def _learning_curves(comparison: Comparison, going: Mapping[str, frames.Records]) -> Plan:
    running = {f"{name} (running)": records for name, records in going.items()}
    return lambda: frames.learning_curves(comparison, running), charts.curves


def _figures(
    plans: Mapping[str, Plan], captions: Mapping[str, str], notes: list[str], progress: Progress
) -> list[Figure]:
    """Return the figures that have data, and note the others; `captions` has the values of fields in figures.toml."""
    texts = tomllib.loads(files(__package__).joinpath("templates/figures.toml").read_text(encoding="utf-8"))
    figures = []
    for at, (name, (numbers, draw)) in enumerate(plans.items()):
        progress("figures", at, len(plans), name)
        with _noting(notes, name):
            frame = numbers()
            if frame.empty:
                notes.append(f"{name}: the runs have no data for this figure.")
            else:
                title, text = (texts[name][key].format(**captions) for key in ("title", "text"))
                figures.append(Figure(name, title, text, frame, draw(frame)))
    progress("figures", len(plans), len(plans), "")
    return figures


@contextmanager
def _noting(notes: list[str], what: str) -> Iterator[None]:
    """Note the reason if something cannot be shown."""
    try:
        yield
    except FedPGPError as error:
        notes.append(f"{what} cannot be shown: {error}")


def _provenance(run: Run, directory: Path) -> dict[str, Any]:
    made = run.provenance
    return {
        "run": f"{run.method}, seed {run.seed}",
        "directory": directory.name if directory.parent.name != run.method else f"{run.method}/{directory.name}",
        "started": made.get("started", ""),
        "fedpgp": made.get("fedpgp", ""),
        "torch": made.get("packages", {}).get("torch", ""),
        "checkpoint": str(made.get("checkpoint", ""))[:12],
        "rounds": run.results["rounds"],
    }


def _page(sections: Sequence[Section], gathered: Gathered, live: bool) -> str:
    environment = Environment(
        loader=PackageLoader("fedpgp.report.page", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    specs = {
        f"{i}-{figure.name}": spec_of(figure.chart)
        | {"background": "transparent", "description": f"{figure.title}. {figure.text}"}
        for i, section in enumerate(sections)
        for figure in section.figures
    }
    return environment.get_template("report.html").render(
        sections=sections,
        faults=gathered.faults,
        going=gathered.going,
        reload=REST if live else 0,
        generator=GENERATOR,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        specs=specs,
        bundle=_bundle().replace("</script", "<\\/script"),
    )


@cache
def _bundle() -> str:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed for the page."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _write_figures(sections: Sequence[Section], directory: Path, progress: Progress) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    prefixes = [f"{i}-" if len(sections) > 1 else "" for i in range(len(sections))]
    figures = [(prefix, figure) for prefix, part in zip(prefixes, sections, strict=True) for figure in part.figures]
    for at, (prefix, figure) in enumerate(figures):
        progress("files", at, len(figures), figure.name)
        write_chart(directory, prefix + figure.name, figure.chart, ("svg", "pdf", "png"))
        write(directory / f"{prefix}{figure.name}.csv", figure.frame.to_csv(index=False).encode())
    for prefix, part in zip(prefixes, sections, strict=True):
        write(directory / f"{prefix}table.tex", part.latex.encode())
    progress("files", len(figures), len(figures), "")


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
