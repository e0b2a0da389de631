"""What the pages of results say is in the files that `fedpgp reproduce photographs` wrote."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
WRITTEN = [path.read_text(encoding="utf-8") for path in sorted((DOCS / "results/photographs").glob("*.md"))]
INTERVAL = re.compile(r"[+−-]?\d+\.\d\.\.[+−-]?\d+\.\d")


def of(text: str) -> str:
    """A text with a hyphen for each minus, as tables have it."""
    return text.replace("−", "-")


@pytest.mark.parametrize("page", ["results.md", "findings.md"])
def test_every_row_and_interval_of_a_page_stands_in_a_written_file(page: str) -> None:
    text, written = (DOCS / page).read_text(encoding="utf-8"), of("\n".join(WRITTEN))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    intervals = INTERVAL.findall(of(text))
    assert rows or intervals
    assert [row for row in rows if of(row) not in written] == []
    assert [interval for interval in intervals if interval not in written] == []
