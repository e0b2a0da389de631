"""Style of all charts, and their conversion to files."""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from altair.typing import ChartType

from fedpgp.runtime.files import write

# Every colour has a contrast of at least 3:1 on white and on the dark ground of the report. Also for readers with
# protanopia or deuteranopia, two colours differ by at least 20 in CIELAB. tests/report/test_style.py checks both.
GREY, BLUE, ORANGE, GREEN, RED = "#7F7F7F", "#5B78EC", "#DA7C00", "#2C7243", "#C62305"
TEAL, PINK, KHAKI, VIOLET = "#007491", "#F244BC", "#A39451", "#7E3CFE"
COLOURS = (GREY, ORANGE, BLUE, RED, GREEN, PINK, TEAL, KHAKI, VIOLET)
STAR = " ".join(
    f"{'L' if i else 'M'}{radius * math.sin(i * math.pi / 5):.2f},{-radius * math.cos(i * math.pi / 5):.2f}"
    for i, radius in enumerate([1.25, 0.5] * 5)
)
CROSS = "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z"
# SVG paths in a square from -1 to 1; an inner path in the other direction is a hole.
MARKERS = {
    "circle": "M.95,0A.95,.95,0,1,1,-.95,0A.95,.95,0,1,1,.95,0Z",
    "square": "M-.85,-.85H.85V.85H-.85Z",
    "triangle-up": "M0,-1L1.1,.9H-1.1Z",
    "diamond": "M0,-1.2L1.1,0L0,1.2L-1.1,0Z",
    "triangle-down": "M0,1L-1.1,-.9H1.1Z",
    "cross": CROSS,
    "star": f"{STAR}Z",
    "saltire": "M-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0L-1,-.5Z",
    "triangle-right": "M1,0L-.9,1.1V-1.1Z",
    "triangle-left": "M-1,0L.9,-1.1V1.1Z",
    "hourglass": "M-1,-1H1L.2,0L1,1H-1L-.2,0Z",
    "ring": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0ZM.5,0A.5,.5,0,1,0,-.5,0A.5,.5,0,1,0,.5,0Z",
    "frame": "M-.9,-.9H.9V.9H-.9ZM-.45,-.45V.45H.45V-.45Z",
    "open diamond": "M0,-1.3L1.2,0L0,1.3L-1.2,0ZM0,-.65L-.6,0L0,.65L.6,0Z",
}
SOLID, DASHED, LEVEL = (1, 0), (6, 2), (4, 3)
OTHER_DASHES = ((6, 2, 1.5, 2), (1.5, 1.5))  # of methods that are not built in


@dataclass(frozen=True)
class Look:
    """Colour, name of the marker and dashes of the line of a method."""

    colour: str
    marker: str
    dash: tuple[float, ...] = SOLID


# At most two methods have the same marker: one with a solid line, the other with dashes and another lightness.
LOOKS = {
    "zero-shot": Look(GREY, "circle", LEVEL),
    "local": Look(ORANGE, "square"),
    "promptfl": Look(BLUE, "triangle-up"),
    "fedpgp": Look(RED, "diamond"),
    "fedkgcoop": Look(GREEN, "triangle-down"),
    "promptfolio": Look(PINK, "cross"),
    "fedotp": Look(VIOLET, "star"),
    "pfedmoap": Look(TEAL, "saltire"),
    "centralized": Look(GREY, "ring", DASHED),
    "promptprox": Look(ORANGE, "triangle-up", DASHED),
    "prompt-per": Look(TEAL, "triangle-right"),
    "prompt-amp": Look(VIOLET, "triangle-left"),
    "fedprograd": Look(PINK, "triangle-down", DASHED),
    "fedproda": Look(TEAL, "square", DASHED),
    "pfedprompt": Look(KHAKI, "hourglass"),
    "fedtpg": Look(GREEN, "ring"),
    "dp-fpl": Look(BLUE, "frame"),
    "fedpha": Look(ORANGE, "open diamond"),
    "fedclip": Look(RED, "circle"),
    "fedcocoop": Look(ORANGE, "saltire", DASHED),
    "fedplot": Look(KHAKI, "star", DASHED),
    "fedvpt": Look(PINK, "triangle-right", DASHED),
    "fedivlp": Look(GREEN, "cross", DASHED),
    "fedmaple": Look(BLUE, "hourglass", DASHED),
    "fedpromptsrc": Look(RED, "frame", DASHED),
    "fedmgp": Look(KHAKI, "diamond", DASHED),
    "pfedmma": Look(VIOLET, "open diamond", DASHED),
}
SMALL = {"labelFontSize": 9, "titleFontSize": 9}
CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "title": {"fontSize": 10, "fontWeight": "normal", "subtitleFontSize": 9, "anchor": "start", "offset": 8},
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


def look_of(name: str) -> Look:
    """Return the look of a method, which depends only on its name: the text before a comma or a parenthesis.

    The look of a method that is not built in follows from a checksum of its name. No built-in method has its dashes.
    Two such methods have the same look with a chance of 1 in 224. Then the legend has both names with one look.
    """
    method = re.split("[,(]", name)[0].strip()
    if method in LOOKS:
        return LOOKS[method]
    number = zlib.crc32(method.encode())
    number, colour = divmod(number, len(COLOURS) - 1)
    number, marker = divmod(number, len(MARKERS))
    return Look(COLOURS[1 + colour], list(MARKERS)[marker], OTHER_DASHES[number % len(OTHER_DASHES)])


@dataclass(frozen=True)
class Series:
    """Encodings of the lines and marks of a chart, with one legend for all.

    Parameters
    ----------
    names
        Names of methods or, with a title, labels of an axis, whose looks depend on their positions.
    title
        Title of the legend.
    joined
        Whether lines connect the marks; the legend then shows the lines, too.
    """

    names: Sequence[str]
    title: str | None = None
    joined: bool = True

    @property
    def looks(self) -> list[Look]:
        """The look of each name."""
        if self.title is None:
            return list(map(look_of, self.names))
        markers = list(MARKERS)
        return [
            Look(COLOURS[1 + i % (len(COLOURS) - 1)], markers[i % len(markers)], SOLID) for i in range(len(self.names))
        ]

    @property
    def colour(self) -> alt.Color:
        """The colour of each name."""
        return self._scaled(alt.Color, [look.colour for look in self.looks], self._legend)

    @property
    def dash(self) -> alt.StrokeDash:
        """The dashes of each line."""
        return self._scaled(alt.StrokeDash, [look.dash for look in self.looks], None)

    def marks(self, chart: alt.Chart) -> alt.Chart:
        """Return the chart with the marker of each name. The legend is the legend of `key`."""
        markers = {name: MARKERS[look.marker] for name, look in zip(self.names, self.looks, strict=True)}
        drawn = chart.transform_calculate(marker=f"{json.dumps(markers)}[datum.method]")
        return drawn.encode(shape=alt.Shape("marker:N", scale=None))

    def key(self, chart: alt.Chart) -> alt.Chart:
        """Return a layer that draws nothing and has the legend: each marker on a piece of its line.

        Legends of Vega-Lite draw dashes around a marker instead.
        """
        symbols = [(_line(look.dash) if self.joined else "") + MARKERS[look.marker] for look in self.looks]
        shape = self._scaled(alt.Shape, symbols, self._legend)
        return chart.transform_filter("false").mark_point(filled=True, aria=False).encode(shape=shape)

    @property
    def _legend(self) -> alt.Legend:
        wide: dict[str, Any] = {"symbolOffset": 12, "labelOffset": 14} if self.joined else {}
        return alt.Legend(title=self.title, symbolSize=60, symbolStrokeWidth=0, **wide)

    def _scaled(self, channel: Any, values: Sequence[Any], legend: alt.Legend | None) -> Any:
        return channel("method:N", scale=alt.Scale(domain=list(self.names), range=values), legend=legend)


def _line(dash: Sequence[float]) -> str:
    """Return the SVG path of a piece of a line for a symbol of the legend; 4 pixels are one unit."""

    def pieces() -> Iterator[str]:
        start, step = -3.2, 0
        while start < 3.2:
            end = min(start + dash[step % len(dash)] / 4, 3.2) if dash != SOLID else 3.2
            if step % 2 == 0:
                yield f"M{start:.2f},-.2H{end:.2f}V.2H{start:.2f}Z"
            start, step = end, step + 1

    return "".join(pieces())


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
