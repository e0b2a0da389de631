"""Names of others cannot act on the program that shows them."""

import ast
import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown as html

from fedpgp.reporting import ProgressBars, SafeConsole
from fedpgp.results import formats
from fedpgp.runtime import escaping

NAMES = [
    '=HYPERLINK("http://a.example","click")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "＝1",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_is_text_in_csv(name: str) -> None:
    rows = [{"class": name, name: -1.5}]
    for text in (formats.to_csv(rows), formats.frame_to_csv(pd.DataFrame(rows))):
        header, row = csv.reader(io.StringIO(text))
        assert header == ["class", f"'{name}"]
        assert row == [f"'{name}", "-1.5"]


@pytest.mark.parametrize("value", [-1.5, 3, "-1.5", "+2", "cat", "a=b", None, True])
def test_numbers_and_other_texts_are_unchanged_in_csv(value: object) -> None:
    assert escaping.csv_cell(value) == value


def test_a_name_cannot_control_a_terminal() -> None:
    text = io.StringIO()
    console = SafeConsole(file=text, force_terminal=True, width=80, color_system=None, emoji=False)
    name = "a\x1b]0;title\x07\x1b[2J\x9b31m\r\u202eb :dog:"
    console.print(name, markup=False)
    ProgressBars(console).notice(name)
    expected = r"a\x1b]0;title\x1b[2J\x9b31m\u202eb :dog:"  # rich removes the bell and the carriage return
    assert text.getvalue() == f"{expected}\n" * 2


@pytest.mark.parametrize("name", ["![a](http://a.example/b.png)", "[a](javascript:b)", "<img src=a>", "`a`", "**a**"])
def test_a_name_is_no_markup_in_markdown(name: str) -> None:
    table = formats.Table("heading", [name], [[formats.TableCell(name)]], legend=name, notes=[name])
    text = formats.markdown(table)
    page = html(text, extensions=["tables"])
    assert page.count("<td>") == 1
    assert not any(mark in page for mark in ("<img", "<a ", "<code", "<strong", "<em"))


def test_a_name_with_a_bar_is_one_cell_of_markdown() -> None:
    text = formats.markdown(formats.Table("", ["a"], [[formats.TableCell("b|c\nd")]]))
    assert text.splitlines()[2] == r"| b\|c<br>d |"


def test_a_name_is_no_command_in_latex() -> None:
    assert escaping.latex(r"\input{/etc/passwd}$~^#%") == (
        r"\textbackslash{}input\{/etc/passwd\}\$\textasciitilde{}\textasciicircum{}\#\%"
    )


@given(st.text())
def test_a_name_is_the_same_text_in_python_code(name: str) -> None:
    if not any("\ud800" <= character <= "\udfff" for character in name):
        assert ast.literal_eval(escaping.python(name)) == name
