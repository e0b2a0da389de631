"""Tables in a terminal: what fits, what goes below the mean or into further tables, and no broken number."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from fedpgp.cli import printing
from fedpgp.report.tables import text_table
from fedpgp.results.formats import Table, TableCell

METRICS = ("Local", "Base", "Novel", "HM", "CM", "area")
HEADER = ("method", *METRICS, "rank", "KiB up", "seconds")
Print = Callable[[int, Table], list[str]]


def metrics(methods: int) -> Table:
    """Return a table as `fedpgp compare` prints it with three seeds, with a row for each shared part."""
    rows = []
    for i in range(methods):
        values = [TableCell(f"{90 - i - j / 10:.1f} ± {j}.{i % 10}", "best" if i == j else "same") for j in range(6)]
        rows.append([TableCell(f"fedmethod{i}"), *values, TableCell("12.5"), TableCell("2803.75"), TableCell(f"{i}")])
        shared = [TableCell(f"fedmethod{i}, shared part"), *values]
        rows.append([*shared, *[TableCell("")] * 3])
    return Table("heading", HEADER, rows, "legend")


def differences(methods: int) -> Table:
    intervals = [*["-12.3\n-14.1..-10.9"] * 5, "no difference\n-2.3..+0.8"]
    rows = [[f"fedmethod{i}", *intervals] for i in range(methods)]
    return text_table("heading", ["fedpgp minus", *METRICS], rows)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Print:
    def printed(width: int, table: Table) -> list[str]:
        console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True, highlight=False)
        monkeypatch.setattr(printing, "out", console)
        printing.print_table(table)
        found = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()
        assert max(map(len, found)) <= width
        return [line.rstrip() for line in found]

    return printed


def numbers(texts: list[str]) -> list[str]:
    return sorted(number for text in texts for number in re.findall(r"[+-]?\d+\.\d+(?:\.\.[+-]\d+\.\d+)?", text))


@pytest.mark.parametrize("methods", [4, 30])
@pytest.mark.parametrize("width", [60, 80, 100, 132])
def test_no_number_and_no_name_is_broken(lines: Print, width: int, methods: int) -> None:
    for made in (metrics(methods), differences(methods)):
        found = lines(width, made)
        assert numbers(found) == numbers([cell.plain for row in made.rows for cell in row])
        for i in range(methods):
            assert any(re.match(rf"fedmethod{i}\b", line) for line in found)


@pytest.mark.parametrize("methods", [4, 30])
def test_metrics_fit_80_columns_in_one_table(lines: Print, methods: int) -> None:
    """The standard deviation is below the mean; a table longer than the terminal repeats its header at its end."""
    found = lines(80, metrics(methods))
    headers = [line.split() for line in found if line.startswith("method")]
    assert len(headers) == (1 if methods == 4 else 2)
    assert "Local" in headers[0] and "seconds" in headers[0]
    at = next(i for i, line in enumerate(found) if line.startswith("fedmethod1"))
    assert found[at].split()[:4] == ["fedmethod1", "89.0", "=", "88.9"]
    assert found[at + 1].split()[:2] == ["±0.1", "±1.1"]


def test_a_wide_terminal_has_a_line_for_each_method(lines: Print) -> None:
    found = lines(132, metrics(4))
    assert len(found) == len(["heading", "header", "legend"]) + 8
    assert "± 1.1" in found[4]


def test_a_long_text_wraps_and_a_number_does_not(lines: Print) -> None:
    settings = "promptfl.learning_rate = 0.002, federation.rounds = 10, promptfl.class_position = front"
    made = text_table("heading", ["method", "CM", "settings"], [["promptfl", "68.1 ± 0.5", settings]])
    found = lines(60, made)
    assert sum(line.startswith("method") for line in found) == 1
    assert "68.1 ± 0.5" in found[2]
    assert " ".join(" ".join(line[20:] for line in found[2:]).split()) == settings


def test_columns_that_do_not_fit_follow_in_further_tables_of_similar_width(lines: Print) -> None:
    found = lines(60, differences(4))
    at = [i for i, line in enumerate(found) if line.startswith("fedpgp minus")]
    assert [found[i].split() for i in at] == [
        ["fedpgp", "minus", "Local", "Base", "Novel"],
        ["fedpgp", "minus", "HM", "CM", "area"],
    ]
    assert sum(line.startswith("fedmethod0") for line in found) == 2
    assert found.count("heading") == 1
