"""How every chart looks, and how it becomes a file."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from altair.typing import ChartType

from fedpgp.runtime.files import write

# Okabe and Ito's palette, which colour-blind readers tell apart. Its black would vanish on a dark page.
COLOURS = ("#7F7F7F", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#F0E442")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "stroke")
SMALL = {"labelFontSize": 9, "titleFontSize": 9}
CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "title": {"fontSize": 10, "fontWeight": "normal"},
    "axis": {**SMALL, "gridOpacity": 0.4, "titleFontWeight": "normal", "labelLimit": 170},
    "legend": {**SMALL, "symbolLimit": 60, "symbolOpacity": 1, "columns": 1, "labelLimit": 170},
    "header": SMALL,
    "tooltipFormat": {"numberFormat": ".4~g"},
}
ENTRIES = re.compile(
    rb"(?: +/\w+ \d+ 0 R\r?\n)+"
)  # of a PDF's dictionaries, whose order vl-convert draws anew each time


def _pdf(spec: dict[str, Any]) -> bytes:
    content: bytes = vl_convert.vegalite_to_pdf(spec)
    return ENTRIES.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), content)


CONVERTERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "pdf": _pdf,
    "png": partial(vl_convert.vegalite_to_png, scale=3),
}


def series(methods: Sequence[str], title: str | None = None) -> dict[str, Any]:
    """The colour and the shape of each method; beyond eight methods colours come again, with other shapes."""
    legend = alt.Legend(title=title)
    shapes = [SHAPES[(i + i // len(SHAPES)) % len(SHAPES)] for i in range(len(methods))]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(methods))]
    return {
        "color": alt.Color("method:N", scale=alt.Scale(domain=methods, range=colours), legend=legend),
        "shape": alt.Shape("method:N", scale=alt.Scale(domain=methods, range=shapes), legend=legend),
    }


def styled(chart: ChartType) -> ChartType:
    """The chart with fonts, sizes and grid lines of this style."""
    return chart.configure(**CONFIG)


def spec_of(chart: ChartType) -> dict[str, Any]:
    """The Vega-Lite specification of a chart in this style, with its data, however many rows these are."""
    with alt.data_transformers.disable_max_rows():
        return styled(chart).to_dict()


def rendered(chart: ChartType, suffix: str) -> bytes:
    """A chart as "svg", "pdf" or "png": the same chart gives the same bytes. It needs no network."""
    return CONVERTERS[suffix](spec_of(chart))


def write_chart(directory: Path, name: str, chart: ChartType, suffixes: Sequence[str] = tuple(CONVERTERS)) -> None:
    """Writes a chart once for each suffix."""
    for suffix in suffixes:
        write(directory / f"{name}.{suffix}", rendered(chart, suffix))
