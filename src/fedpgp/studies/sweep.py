"""A grid of one's own over any config."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from fedpgp.errors import ConfigError, nearest
from fedpgp.results.run_store import SWEEP
from fedpgp.runs.choices import HEADLINE, chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.studies.axes import axis_of_text, axis_of_values, read_axes
from fedpgp.studies.cells import StudyCell
from fedpgp.studies.plan import Found, Grid, GridPart, check_methods
from fedpgp.studies.run import begin_grid, finish_grid, load_grid, planned_grid
from fedpgp.studies.search import Study

Axes = Mapping[str, Sequence[Any]]  # "section.key" -> values
KEYS = ("config", "methods", "axes")  # of a grid's file


def sweep(
    axes: Axes | Sequence[str] | Path | str,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Found:
    """Runs methods on every combination of values, a comparison for each, and writes tables, a CSV file and figures.

    Args:
        axes: "section.key" -> values, or texts such as "fedpgp.mu=0.1,1", or a TOML file: see `read_sweep`.
        methods, config: None takes those of the file, or zero-shot, local, promptfl and fedpgp on the embedded recipe.
        output: a directory; after Ctrl-C, a kill or an error, `resume_sweep(output)` goes on.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work where an axis, any cell or the output do not fit.
    """
    grid, file = _asked(axes, methods, seeds, config)
    begin_grid(grid, SWEEP, file, changes, Path(output), force)
    return resume_sweep(output, **options)


def planned(
    axes: Axes | Sequence[str] | Path | str,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
) -> tuple[str, list[StudyCell]]:
    """What `sweep` would do, in a line and as cells, after its checks; nothing is written."""
    grid, file = _asked(axes, methods, seeds, config)
    return planned_grid(grid, file, changes)


def resume_sweep(
    directory: Path | str,
    **options: Unpack[ExecutionOptions],
) -> Found:
    """Goes on with a grid that was stopped; where all cells are finished, writes tables and figures again."""
    return finish_grid(
        Path(directory),
        SWEEP,
        Execution(**options),
    )


def load_sweep(directory: Path | str) -> Found:
    """What a directory of `fedpgp sweep` holds; raises OutputError where it is not finished."""
    return load_grid(Path(directory), SWEEP)


def read_sweep(file: Path) -> tuple[dict[str, Study], list[str] | None, str | None]:
    """The axes of a TOML file, and the methods and the config that it names.

    A table for each axis in [axes], see `fedpgp.studies.axes.read_axes`; methods = […] and config = "…" before them.
    Raises ConfigError, naming the file.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"grid {file} cannot be read: {error.strerror}; name a file that exists") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from error
    for key in tables:
        if key not in KEYS:
            raise ConfigError(f"{file}: {key} is not a key of a grid; {nearest(key, KEYS)}")
    methods = tables.get("methods")
    if methods is not None and not (isinstance(methods, list) and all(isinstance(name, str) for name in methods)):
        raise ConfigError(f"{file}: methods must be a list of names, got {methods!r}")
    return read_axes(tables.get("axes"), f"{file}: axes"), methods, tables.get("config")


def _asked(
    axes: Axes | Sequence[str] | Path | str,
    methods: Sequence[str] | None,
    seeds: int | Sequence[int],
    config: Path | str | None,
) -> tuple[Grid, Path | str | None]:
    """The grid, and the config that it changes."""
    named, of_file, in_file = _axes(axes)
    names = check_methods(methods if methods is not None else of_file or HEADLINE)
    grid = Grid([GridPart("", named)], names, chosen_seeds(seeds, "seeds"))
    return grid, in_file if config is None else config


def _axes(axes: Axes | Sequence[str] | Path | str) -> tuple[dict[str, Study], list[str] | None, str | None]:
    if isinstance(axes, Path | str):
        return read_sweep(Path(axes))
    if isinstance(axes, Mapping):
        for key, values in axes.items():
            if not len(values):
                raise ConfigError(f"axis {key} must have a value or more, got none")
        named = {key: axis_of_values(key, values) for key, values in axes.items()}
    else:
        named = {}
        for key, axis in map(axis_of_text, axes):
            if key in named:
                raise ConfigError(f"{key} must be given once, with all its values: {key}=a,b,c")
            named[key] = axis
    if not named:
        raise ConfigError("a grid must have an axis or more, such as --grid fedpgp.mu=0.1,1")
    return named, None, None
