"""Names of others, such as class names and file names, made safe for the medium that shows them.

A name must not move the cursor of a terminal, become a formula in a spreadsheet, or a link, a picture or a command in
Markdown and LaTeX. HTML pages escape names in their templates (Jinja).
"""

import json
import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# Control characters without tab and line feed, and the marks that reverse the direction of the text after them.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FORMULA = tuple("=+-@\t＝＋－＠")  # beginnings of a formula in Excel, LibreOffice and Google Sheets
MARKDOWN = re.compile(r"[\\`*|]|\](?=[(\[:])")
LATEX: Mapping[str, str] = {
    **{character: rf"\{character}" for character in "%&_#{}$"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "α": r"$\alpha$",
}


def terminal(text: str) -> str:
    r"""Return a text for a terminal, in which control characters are written as \x1b."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def csv_cell(value: Value) -> Value | str:
    """Return the value of a CSV cell. A text that a spreadsheet would read as a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = terminal(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def markdown(text: str) -> str:
    """Return a text for a line of Markdown or a cell of its table, in which no character is markup."""
    return MARKDOWN.sub(r"\\\g<0>", terminal(text)).replace("<", "&lt;").replace("\n", "<br>")


def latex(text: str) -> str:
    """Return a text for a line of LaTeX, in which no character is a command."""
    return "".join(LATEX.get(character, character) for character in terminal(text).replace("\n", " "))


def python(value: str | list[str]) -> str:
    """Return a text, or a list of texts, as an expression of Python code."""
    return terminal(json.dumps(value, ensure_ascii=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
