"""The notebooks run as they stand, and what they show was made by their own cells."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_those_that_the_site_names():
    assert [path.stem for path in NOTEBOOKS] == ["tour", "your_images", "your_method"]


@pytest.mark.by_hand
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    command = [sys.executable, str(ROOT / "tools" / "notebooks.py"), path.stem]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_of_one_run_from_its_first_cell_to_its_last(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {one.output_type for cell in cells for one in cell.outputs} <= {"stream", "display_data", "execute_result"}
