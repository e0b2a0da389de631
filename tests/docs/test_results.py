"""The tables and figures of the results pages are in the result files, and the tool that checks this finds faults."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import results_pages
from results_pages import PAGES, filled, problems

WRITTEN = """## shots: last round, percent

| method | Local |
| --- | --- |
| fedpgp | 66.6 ± 1.2 |

## Questions

| first minus second | Local |
| --- | --- |
| the positive pair alone − none | +2.6<br>+1.8..+3.6 |
"""
PAGE = """# A page

FedPGP reaches 66.6 ± 1.2, which is 2.6 points higher (95 % interval
1.8 to 3.6); the other method is 2.6 points lower (-3.6 to -1.8). Local grows from 10.0 to 20.0.

<!-- numbers: 10.0 20.0 -->

<!-- table: results/written.md; shots: last round -->
<!-- end -->

<!-- table: results/written.md; Questions -->
<!-- end -->

A step is 44 times as fast, **45.9×** with groups, and takes 7.5 ms. The run prints 71.2.

<!-- measured: fedpgp bench -->

| 44.4× | 45.9× | 7.5 |

```
Local 71.2
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with filled tables, and its result file."""
    monkeypatch.setattr(results_pages, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/written.md").write_text(WRITTEN, encoding="utf-8")
    (tmp_path / "page.md").write_text(filled(PAGE), encoding="utf-8")
    return tmp_path / "page.md"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_what_the_result_files_have(name: str) -> None:
    assert list(problems(name)) == [], "run python tools/results_pages.py, and correct the text"


def test_the_tool_fills_tables_in_the_words_of_the_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "| fedpgp | 66.6 ± 1.2 |" in text
    assert "| the positive pair only − none | +2.6<br>+1.8 to +3.6 |" in text
    assert filled(text) == text
    assert list(problems("page.md")) == []


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("| 66.6 ± 1.2 |", "| 66.7 ± 1.2 |", "results/written.md; shots: last round"),
        ("| fedpgp | 66.6 ± 1.2 |\n", "", "results/written.md; shots: last round"),
        ("reaches 66.6 ± 1.2", "reaches 66.6 ± 1.3", "page.md:3"),
        ("1.8 to 3.6)", "1.8 to 3.7)", "page.md:4"),
        ("-3.6 to -1.8", "-3.6 to 1.8", "page.md:4"),
        ("2.6 points higher", "2.7 points higher", "page.md:3"),
        ("is 44 times as fast", "is 45 times as fast", "page.md:24"),
        ("**45.9×** with", "**45.8×** with", "page.md:24"),
        ("takes 7.5 ms", "takes 7.6 ms", "page.md:24"),
        ("prints 71.2", "prints 71.3", "page.md:24"),
        ("Local 71.2", "Local 71.3", "page.md:24"),
        ("# A page", "# A page\n\n![Shots](results/shots.png)", "results/shots.png"),
    ],
)
def test_the_check_names_what_differs(page: Path, before: str, after: str, named: str) -> None:
    text = page.read_text(encoding="utf-8")
    assert before in text
    page.write_text(text.replace(before, after), encoding="utf-8")
    (problem,) = problems("page.md")
    assert named in problem


def test_a_line_that_no_file_has_stops_the_tool(page: Path) -> None:
    with pytest.raises(SystemExit, match="label-shift"):
        filled("<!-- table: results/written.md; label-shift -->\n<!-- end -->\n")


def test_a_further_file_may_have_the_figures_of_the_text(page: Path) -> None:
    rows = "first,second,metric,first_minus_second,low,high\nfedpgp,local,hm,1.04,0.44,1.66\n"
    (page.parent / "results/written-differences.csv").write_text(rows, encoding="utf-8")
    text = page.read_text(encoding="utf-8").replace("# A page", "# A page\n\n1.0 points higher (0.4 to 1.7).")
    page.write_text(text, encoding="utf-8")
    assert [problem.split()[-1] for problem in problems("page.md")] == ["1.7", "1.0"]
    page.write_text(text + "\n<!-- figures: results/written-differences.csv -->\n", encoding="utf-8")
    assert list(problems("page.md")) == []
