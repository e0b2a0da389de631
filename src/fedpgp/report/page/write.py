"""Gathered runs -> one file that opens from a disk, and figures for a paper."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader

from fedpgp.errors import ConfigError, FedPGPError, OutputError
from fedpgp.report import tables
from fedpgp.report.comparison import all_tables
from fedpgp.report.page import charts, frames
from fedpgp.report.page import run_details as closer
from fedpgp.report.page.charts import Chart
from fedpgp.report.page.collect import Gathered, ReportedTask, gather
from fedpgp.results import formats
from fedpgp.results.run import Comparison, Run
from fedpgp.runtime.files import write
from fedpgp.runtime.version import __version__

GENERATOR = "fedpgp report"
REST = 2.0  # seconds between two looks at what is running
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Section:
    """What a page shows of one task. focus: the method that is looked at closer; notes: what could not be shown."""

    heading: str
    tables: Sequence[formats.Table]
    charts: Sequence[Chart]
    focus: str = ""
    wrong: Sequence[closer.Wrong] = ()
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
    """Writes a page about all runs of some directories; what cannot be shown is named on it.

    focus: the method that is looked at closer; None takes the last. figures: a directory for each figure as SVG, PDF,
    PNG and CSV, and the tables as LaTeX. force: replace what is not a report. Raises FedPGPError before any work where
    there is nothing to show, or no place for it.
    """
    _check(output, force)
    found = gather(given)
    _write(found, output, focus, figures, False, progress)
    return found


def follow(
    given: Sequence[Path], output: Path, *, focus: str | None = None, force: bool = False, rest: float = REST
) -> None:
    """Writes the page again whenever runs have gone on, until all are finished; it loads itself again meanwhile."""
    _check(output, force)
    before = None
    while True:
        found = gather(given)
        state = ([one.name for one in found.going], [len(one.records) for one in found.going])
        if state != before:
            _write(found, output, focus, None, bool(found.going), lambda *_: None)
            before = state
        if not found.going:
            return
        time.sleep(rest)


def _write(
    found: Gathered, output: Path, focus: str | None, figures: Path | None, live: bool, progress: Progress
) -> None:
    known = {method for part in found.parts for method in part.comparison.methods}
    if focus is not None and focus not in known:
        raise ConfigError(f"focus must be a method of the runs, got {focus!r}; there are {', '.join(sorted(known))}")
    sections = [_section(part, found, focus, not live, progress) for part in found.parts]
    if not sections:
        frame = frames.rounds(Comparison([]), found.going, tables.TITLES)
        drawn = [charts.rounds(frame)] if len(frame) else []
        sections = [Section("Running", [], drawn)]
    write(output, _page(sections, found, live).encode())
    if figures is not None:
        _write_figures(sections, figures, progress)


def _section(part: ReportedTask, found: Gathered, focus: str | None, whole: bool, progress: Progress) -> Section:
    comparison, notes = part.comparison, list[str]()
    named = tables.titles(comparison)
    method = focus if focus in comparison.methods else comparison.methods[-1]
    run = comparison.of(method)[0]
    makers: list[tuple[str, Callable[[], Chart | None]]] = [
        ("tradeoff", lambda: charts.tradeoff(frames.tradeoff(comparison), tables.others_title(comparison))),
        ("rounds", lambda: _drawn(charts.rounds, frames.rounds(comparison, found.going, named))),
        ("clients", lambda: _drawn(charts.clients, frames.clients(comparison))),
        ("client-by-class", lambda: _drawn(charts.client_by_class, frames.client_by_class(run), method)),
        ("confusion", lambda: _drawn(charts.confusion, frames.confusion(run), method)),
        ("cosines", lambda: _drawn(charts.cosines, frames.cosines(comparison))),
        ("singular values", lambda: _drawn(charts.singular_values, frames.singular_values(run), method)),
    ]
    first = None
    if whole:
        try:
            first = closer.first_model(run)
        except FedPGPError as error:
            notes.append(f"text features and images of {method} cannot be shown: {error}")
    if first is not None:
        model = first
        makers.append(("text features", lambda: _drawn(charts.features, closer.text_features(run, model), method)))
    drawn = []
    for at, (name, make) in enumerate(makers):
        progress("figures", at, len(makers), name)
        try:
            chart = make()
        except FedPGPError as error:
            notes.append(f"{name} of {method} cannot be shown: {error}")
            continue
        if chart is None:
            notes.append(f"{name}: the runs have nothing to show here")
        else:
            drawn.append(chart)
    wrong: Sequence[closer.Wrong] = []
    if first is not None:
        try:
            wrong = closer.wrong(run, first)
        except FedPGPError as error:
            notes.append(f"images that clients of {method} get wrong cannot be shown: {error}")
    progress("figures", len(makers), len(makers), "")
    try:
        shown = all_tables(comparison, None if focus is None else method)
    except OutputError as error:  # across machines there is nothing to resample
        shown = [tables.table(comparison)] if len(comparison.methods) == 1 else []
        notes.append(str(error))
    return Section(
        heading=tables.caption(comparison),
        tables=shown,
        charts=drawn,
        focus=method,
        wrong=wrong,
        costs=frames.costs(comparison).to_dict("records"),
        provenance=[_provenance(one, part.directories[one.method, one.seed]) for one in comparison.runs],
        notes=notes,
        latex=formats.latex(shown[0]) if shown else "",
    )


def _drawn(make: Callable[..., Chart], frame: Any, *rest: str) -> Chart | None:
    return make(frame, *rest) if len(frame) else None


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


def _page(sections: Sequence[Section], found: Gathered, live: bool) -> str:
    environment = Environment(
        loader=PackageLoader("fedpgp.report.page", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    specs = {f"{i}-{chart.name}": chart.spec for i, part in enumerate(sections) for chart in part.charts}
    return environment.get_template("report.html").render(
        sections=sections,
        faults=found.faults,
        going=[(one.name, len(one.records)) for one in found.going],
        reload=REST if live else 0,
        generator=GENERATOR,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        specs=specs,
        bundle=_bundle().replace("</script", "<\\/script"),
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and their embedding, to be put into the page."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _write_figures(sections: Sequence[Section], directory: Path, progress: Progress) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    every = [
        (f"{i}-{chart.name}" if len(sections) > 1 else chart.name, chart)
        for i, part in enumerate(sections)
        for chart in part.charts
    ]
    for at, (name, chart) in enumerate(every):
        progress("files", at, len(every), name)
        spec = {**chart.spec, "background": "white"}
        write(directory / f"{name}.svg", vl_convert.vegalite_to_svg(spec).encode())
        write(directory / f"{name}.pdf", vl_convert.vegalite_to_pdf(spec))
        write(directory / f"{name}.png", vl_convert.vegalite_to_png(spec, scale=3))
        write(directory / f"{name}.csv", chart.frame.to_csv(index=False).encode())
    for i, part in enumerate(sections):
        write(directory / ("table.tex" if len(sections) == 1 else f"{i}-table.tex"), part.latex.encode())
    progress("files", len(every), len(every), "")


def _check(output: Path, force: bool) -> None:
    if output.is_dir():
        raise OutputError(f"output {output} is a directory; name a file with -o, such as report.html")
    if output.exists() and not force:
        with output.open("rb") as file:
            if f'content="{GENERATOR}'.encode() not in file.read(600):
                raise OutputError(
                    f"output {output} is not a report; name another file with -o, or replace it with --force"
                )
    if not output.absolute().parent.is_dir():
        raise OutputError(f"output {output} cannot be written: its directory does not exist; make it, or name another")
