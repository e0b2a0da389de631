"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedpgp.runtime import escaping
from fedpgp.runtime.escaping import csv_cell

if TYPE_CHECKING:
    import pandas as pd

Mark = Literal["best", "same", "above"]
MARKS: Mapping[Mark, str] = {"best": "", "same": " =", "above": " +"}


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes
    ----------
    text
        The value as text.
    mark
        How the value compares with the others of its column, such as "best"; None for no mark.
    """

    text: str
    mark: Mark | None = None

    @property
    def plain(self) -> str:
        """The text with its mark."""
        return self.text + (MARKS[self.mark] if self.mark else "")


@dataclass(frozen=True)
class Table:
    """A table with its heading and explanations.

    Attributes
    ----------
    heading
        Title of the table.
    header
        Names of the columns.
    rows
        Cells, one row for each line.
    legend
        Explanation of columns and marks.
    notes
        Paragraphs below the table.
    """

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    legend: str = ""
    notes: Sequence[str] = ()


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    texts = [[(escaping.markdown(cell.plain), cell.mark) for cell in row] for row in table.rows]
    lines = [[f"**{text}**" if mark == "best" else text for text, mark in row] for row in texts]
    header = [list(map(escaping.markdown, table.header)), ["---"] * len(table.header)]
    body = "".join("| " + " | ".join(row) + " |\n" for row in [*header, *lines])
    below = [escaping.markdown(text) for text in (table.legend, *table.notes) if text]
    return "\n".join([body, *(f"{text}\n" for text in below)])


def latex(table: Table) -> str:
    """Return a table as LaTeX for the package booktabs, with its caption."""
    lines = []
    for row in table.rows:
        texts = [escaping.latex(cell.text) for cell in row]
        marks = {"best": r"\textbf{%s}", "same": r"%s$^{=}$", "above": r"%s$^{+}$", None: "%s"}
        lines.append(" & ".join(marks[cell.mark] % text for text, cell in zip(texts, row, strict=True)))
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{escaping.latex(table.heading)}. {escaping.latex(table.legend)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            "    " + " & ".join(map(escaping.latex, table.header)) + r" \\",
            r"    \midrule",
            *(f"    {line} \\\\" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par {{\footnotesize {escaping.latex(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return dictionaries as CSV; without `columns`, the keys are columns in the order of their first occurrence."""
    text = io.StringIO()
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in names})
    writer.writerows({key: "" if value is None else csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def frame_to_csv(frame: "pd.DataFrame") -> str:
    """Return a frame as CSV, without its index."""
    return frame.rename(columns=csv_cell).map(csv_cell).to_csv(index=False)
