"""Sweeps: studies of every combination of given values, over any config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from fedpgp.errors import ConfigError, nearest
from fedpgp.methods import Method
from fedpgp.runs.choices import HEADLINE, chosen_seeds
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.axes import Axis, axis_of_text, axis_of_values, read_axes, read_toml
from fedpgp.studies.study import Study, StudyPart, named

Axes = Mapping[str, Sequence[Any]]  # "section.key" -> values
KEYS = ("config", "methods", "axes")  # keys of the file of a grid


class Sweep(Study):
    """A study of one part with given axes."""

    kind = "sweep"


def sweep(
    axes: Axes | Sequence[str] | Path | str,
    *,
    methods: Sequence[str | Method] | None = None,
    seeds: int | Sequence[int] = 1,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str | None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Sweep:
    """Run methods on every combination of values, a comparison for each, and write tables, a CSV file and figures.

    Parameters
    ----------
    axes
        Mapping of "section.key" -> values, texts such as "fedpgp.mu=0.1,1", or a TOML file, see `read_sweep`.
    methods
        Names of methods, or files "path/to/file.py:Name"; None takes the methods of the file, or else zero-shot, local,
        promptfl and fedpgp.
    seeds
        Number of seeds, or the seeds themselves.
    config
        TOML file or name of a recipe; None takes the config of the file, or else the default recipe.
    changes
        Changes of the config, such as "task.shots=4".
    output
        Directory for the results. After Ctrl-C, a kill or an error, `resume_sweep(output)` continues the work. None
        runs nothing: the returned object has only what `Study.plan` and `Study.check` need.
    force
        Replace an existing output directory.
    **options
        Options of `fedpgp.compare` about how runs are executed.

    Raises
    ------
    FedPGPError
        Before any work, if an axis, a cell or the output does not fit.
    """
    grid: dict[str, Axis] = {}
    if isinstance(axes, Path | str):
        grid, of_file, in_file = read_sweep(Path(axes))
        methods = of_file if methods is None else methods
        config = in_file if config is None else config
    elif isinstance(axes, Mapping):
        grid = {key: axis_of_values(key, values) for key, values in axes.items()}
    else:
        for key, axis in map(axis_of_text, axes):
            if key in grid:
                raise ConfigError(
                    f"the axis {key} is given twice",
                    where="--grid",
                    got=key,
                    remedy=f"Give it once, with all its values: --grid {key}=a,b,c",
                )
            grid[key] = axis
    if not grid:
        raise ConfigError("the grid has no axis", where="--grid", remedy="Use for example --grid fedpgp.mu=0.1,1")
    names, own = named(HEADLINE if methods is None else methods)
    study = Sweep([StudyPart("", grid)], names, chosen_seeds(seeds, "seeds"), config=config, changes=changes, own=own)
    return study.run(output, force, options)


def resume_sweep(
    directory: Path | str, *, methods: Sequence[str | Method] = (), **options: Unpack[ExecutionOptions]
) -> Sweep:
    """Continue an interrupted sweep; if all cells are finished, write tables and figures again.

    `methods`: the methods of the sweep that are neither built in nor from an installed package.
    """
    return Sweep.resume(Path(directory), methods, options)


def load_sweep(directory: Path | str, *, methods: Sequence[str | Method] = ()) -> Sweep:
    """Return the sweep that `fedpgp sweep` wrote into a directory. `methods`: as in `resume_sweep`.

    Raises
    ------
    OutputError
        If the sweep is not finished.
    """
    return Sweep.load(Path(directory), methods)


def read_sweep(file: Path) -> tuple[dict[str, Axis], list[str] | None, str | None]:
    """Return the axes, the methods and the config of a TOML file.

    The section [axes] has a table for each axis, see `fedpgp.studies.axes.read_axes`. Before that section, the file may
    have methods = […] and config = "…".

    Raises
    ------
    ConfigError
        If the file cannot be read, or one of its keys or values is not allowed.
    """
    tables = read_toml(file, "file of the grid")
    for key in tables:
        if key not in KEYS:
            raise ConfigError(f"a grid has no key {key!r}", where=f"{file}", got=key, remedy=nearest(key, KEYS))
    methods = tables.get("methods")
    if methods is not None and not (isinstance(methods, list) and all(isinstance(name, str) for name in methods)):
        raise ConfigError(
            where=f"{file}: methods",
            allowed="a list of names",
            got=methods,
            remedy='Use for example methods = ["promptfl", "fedpgp"]',
        )
    return read_axes(tables.get("axes"), f"{file}: axes"), methods, tables.get("config")
