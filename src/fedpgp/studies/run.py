"""What is the same for every command that runs a grid: its directory, its cells, and what is written in the end."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.config import load_config
from fedpgp.methods.plugins import find_method
from fedpgp.results.run_store import FINISHED, SWEEP, check_output, locked, run_directory, writing
from fedpgp.runs.execution import Execution
from fedpgp.runtime.files import write, write_json
from fedpgp.studies.cells import StudyCell, check_cells, distinct, load_cells, run_cells
from fedpgp.studies.plan import CONFIG, Found, Grid, digest_of, read_grid


def plan_in_words(grid: Grid, cells: int) -> str:
    """All of it in a line."""
    seeds = f"seed{'s' * (len(grid.seeds) > 1)} {', '.join(map(str, grid.seeds))}"
    runs = cells * len(grid.methods) * len(grid.seeds)
    return (
        f"{cells} cell{'s' * (cells != 1)} × {len(grid.methods)} method{'s' * (len(grid.methods) != 1)}"
        f" ({', '.join(grid.methods)}) × {len(grid.seeds)} ({seeds}): {runs} runs"
    )


def check_grid(grid: Grid, config: Path | str | None, changes: Sequence[str]) -> None:
    """Raises ConfigError, with a line for each thing that stands in the way, where some cell cannot be run."""
    check_cells(distinct(grid.cells(config, changes)), grid.seeds)


def planned_grid(grid: Grid, config: Path | str | None, changes: Sequence[str]) -> tuple[str, list[StudyCell]]:
    """What would be done, in a line and as cells, after the same checks; nothing is written."""
    check_grid(grid, config, changes)
    cells = distinct(grid.cells(config, changes))
    return plan_in_words(grid, len(cells)), cells


def begin_grid(
    grid: Grid, record: str, config: Path | str | None, changes: Sequence[str], directory: Path, force: bool
) -> None:
    """Checks every cell, and makes the directory. record: the file that says what was asked, one of `FINISHED`."""
    check_output(directory, force)
    check_grid(grid, config, changes)
    settings = load_config(config, changes, [find_method(name) for name in grid.methods])
    with run_directory(directory, force) as scratch:
        write(scratch / CONFIG, settings.to_toml().encode())
        write_json(scratch / record, grid.record())


def finish_grid(
    directory: Path,
    record: str,
    execution: Execution,
) -> Found:
    """Does what is left of a grid, and writes its report, of which the last file is the one named in `FINISHED`."""
    name, _ = FINISHED[record]
    grid = read_grid(directory / record, name)
    cells = distinct(grid.cells(directory / CONFIG))
    execution.listener.notice(plan_in_words(grid, len(cells)))
    with locked(directory):
        run_cells(
            cells,
            grid.seeds,
            directory,
            execution,
        )
        found = load_grid(directory, record)
        if execution.writers is not None:
            write_report = execution.writers.sweep if record == SWEEP else execution.writers.reproduction
            with writing(directory, f"free space, then go on with: fedpgp {name} --resume {directory}"):
                write_report(found, directory)
    return found


def load_grid(directory: Path, record: str) -> Found:
    """What a directory holds; raises OutputError where it is not finished."""
    name, _ = FINISHED[record]
    grid = read_grid(directory / record, name)
    cells = grid.cells(directory / CONFIG)
    comparisons = load_cells(distinct(cells), directory, f"fedpgp {name} --resume {directory}")
    return Found(grid, {key: comparisons[cell.place] for key, cell in cells.items()}, digest_of(directory))
