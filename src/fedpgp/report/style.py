"""Style of all charts, and their conversion to files."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from altair.typing import ChartType

from fedpgp.runtime.files import write

# The palette of Okabe and Ito for colour-blind readers, with grey instead of black, which a dark page would hide.
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
# Entries of the dictionaries of a PDF. vl-convert writes them in a random order, which would change the bytes.
ENTRIES = re.compile(rb"(?: +/\w+ \d+ 0 R\r?\n)+")


def _pdf(spec: dict[str, Any]) -> bytes:
    content: bytes = vl_convert.vegalite_to_pdf(spec)
    return ENTRIES.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), content)


CONVERTERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "svg": lambda spec: vl_convert.vegalite_to_svg(spec).encode(),
    "pdf": _pdf,
    "png": partial(vl_convert.vegalite_to_png, scale=3),
}


def series(methods: Sequence[str], title: str | None = None) -> dict[str, Any]:
    """Return the colour and the shape of each method; after eight methods, colours repeat with other shapes."""
    legend = alt.Legend(title=title)
    shapes = [SHAPES[(i + i // len(SHAPES)) % len(SHAPES)] for i in range(len(methods))]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(methods))]
    return {
        "color": alt.Color("method:N", scale=alt.Scale(domain=methods, range=colours), legend=legend),
        "shape": alt.Shape("method:N", scale=alt.Scale(domain=methods, range=shapes), legend=legend),
    }


def styled(chart: ChartType) -> ChartType:
    """Return the chart with the fonts, sizes and grid lines of this style."""
    return chart.configure(**CONFIG)


def spec_of(chart: ChartType) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart in this style, with all rows of its data."""
    with alt.data_transformers.disable_max_rows():
        return styled(chart).to_dict()


def rendered(chart: ChartType, suffix: str) -> bytes:
    """Return a chart as "svg", "pdf" or "png", without a network. The same chart always gives the same bytes."""
    return CONVERTERS[suffix](spec_of(chart))


def write_chart(directory: Path, name: str, chart: ChartType, suffixes: Sequence[str] = tuple(CONVERTERS)) -> None:
    """Write a chart as a file for each suffix."""
    for suffix in suffixes:
        write(directory / f"{name}.{suffix}", rendered(chart, suffix))
