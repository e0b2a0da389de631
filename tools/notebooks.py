"""Run the notebooks of docs/notebooks, each in its own directory: `python tools/notebooks.py`.

With `--keep`, their outputs are written into the notebooks, without standard error and progress bars.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

DIRECTORY = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = ("tour", "your_method", "your_images")


def executed(name: str) -> nbformat.NotebookNode:
    """Return a notebook after running all of its cells; raise CellExecutionError if a cell fails."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an active venv
    notebook = nbformat.read(DIRECTORY / f"{name}.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        runner = ExecutePreprocessor(timeout=300, kernel_name="python3", record_timing=False)
        notebook, _ = runner.preprocess(notebook, {"metadata": {"path": directory}})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr" and not is_progress(one)]
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    return notebook


def is_progress(output: nbformat.NotebookNode) -> bool:
    """Return whether rich printed an output, such as a progress bar."""
    return output.output_type == "display_data" and output.data.get("text/html", "").startswith("<pre style=")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"notebooks to run: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--keep", action="store_true", help="write the outputs into the notebooks")
    asked = parser.parse_args()
    for name in asked.names:
        begun = time.monotonic()
        notebook = executed(name)
        if asked.keep:
            notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
            nbformat.write(notebook, DIRECTORY / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
