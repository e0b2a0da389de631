"""Tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    lines = [
        [f"**{cell.plain}**" if cell.mark == "best" else cell.plain.replace("\n", "<br>") for cell in row]
        for row in table.rows
    ]
    body = "".join("| " + " | ".join(row) + " |\n" for row in [table.header, ["---"] * len(table.header), *lines])
    below = [text for text in (table.legend, *table.notes) if text]
    return "\n".join([body, *(f"{text}\n" for text in below)])


def latex(table: Table) -> str:
    """Return a table as LaTeX for the package booktabs, with its caption."""
    lines = []
    for row in table.rows:
        texts = [_latex(cell.text.replace("\n", " ")) for cell in row]
        marks = {"best": r"\textbf{%s}", "same": r"%s$^{=}$", "above": r"%s$^{+}$", None: "%s"}
        lines.append(" & ".join(marks[cell.mark] % text for text, cell in zip(texts, row, strict=True)))
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{_latex(table.heading)}. {_latex(table.legend)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            "    " + " & ".join(map(_latex, table.header)) + r" \\",
            r"    \midrule",
            *(f"    {line} \\\\" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par {{\footnotesize {_latex(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return dictionaries as CSV; without `columns`, the keys are columns in the order of their first occurrence."""
    text = io.StringIO()
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _latex(text: str) -> str:
    special = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "{": r"\{", "}": r"\}", "±": r"$\pm$", "α": r"$\alpha$"}
    return "".join(special.get(character, character) for character in text)
