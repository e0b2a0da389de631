"""Pages: one HTML file that needs no network. A report and the page of a comparison have the same template."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from altair.typing import ChartType
from jinja2 import Environment, PackageLoader

from fedpgp.report.style import spec_of
from fedpgp.results import formats
from fedpgp.runtime.version import __version__

GENERATOR = "fedpgp report"
ROWS = 40  # rows of a table that are shown together
WIDE = 8  # columns above which a table is printed in small letters


@dataclass(frozen=True)
class Part:
    """Part of a section, with a title and an entry in the menu.

    Attributes
    ----------
    name
        Name of the part, which is the name of its files, too.
    title
        Title of the part.
    text
        Explanation.
    lines
        Sentences of a list.
    table
        A table.
    chart
        An Altair chart, which the page draws when it comes into view.
    frame
        Data of the chart.
    svg
        A figure that is drawn already.
    pictures
        Example images, see `fedpgp.report.page.run_details.examples`.
    command
        A command for a terminal.
    file
        Name and content of a file that a reader can save.
    """

    name: str
    title: str
    text: str = ""
    lines: Sequence[str] = ()
    table: formats.Table | None = None
    chart: ChartType | None = None
    frame: pd.DataFrame | None = None
    svg: str = ""
    pictures: Sequence[Mapping[str, Any]] = ()
    command: str = ""
    file: tuple[str, str] | None = None

    @property
    def spec(self) -> dict[str, Any] | None:
        """The Vega-Lite specification of the chart."""
        if self.chart is None:
            return None
        return spec_of(self.chart) | {"background": "transparent", "description": f"{self.title}. {self.text}"}


@dataclass(frozen=True)
class Section:
    """Section of a page about one task, with a heading."""

    heading: str
    parts: Sequence[Part]


def page(
    title: str,
    sections: Sequence[Section],
    *,
    made: str = "",
    faults: Sequence[str] = (),
    going: Mapping[str, int] | None = None,
    reload: float = 0,
    script: str = "",
) -> str:
    """Return the HTML text of a page.

    Parameters
    ----------
    title
        First heading.
    sections
        Content, with a menu entry for each part.
    made
        Time at which the page was made; "" leaves it out.
    faults
        Messages about runs that are not shown.
    going
        Number of finished rounds of each unfinished run.
    reload
        Seconds after which the page loads itself again; 0 means never.
    script
        JavaScript that draws the charts and defines vegaEmbed.
    """
    environment = Environment(
        loader=PackageLoader("fedpgp.report.page", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        made=made,
        faults=faults,
        going=going or {},
        reload=reload,
        generator=GENERATOR,
        version=__version__,
        script=script.replace("</script", "<\\/script"),
        rows=ROWS,
        wide=WIDE,
    )


def texts(name: str, **fields: str) -> tuple[str, str]:
    """Return the title and the caption of a figure of figures.toml, with values of its fields."""
    found = tomllib.loads(files(__package__).joinpath("templates/figures.toml").read_text(encoding="utf-8"))[name]
    return found["title"].format(**fields), found["text"].format(**fields)
