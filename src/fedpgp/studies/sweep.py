"""A study of one's own: every combination of values, over any config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from fedpgp.errors import ConfigError, nearest
from fedpgp.runs.choices import HEADLINE, chosen_seeds
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.axes import Axis, axis_of_text, axis_of_values, read_axes, read_toml
from fedpgp.studies.study import Study, StudyPart, check_methods

Axes = Mapping[str, Sequence[Any]]  # "section.key" -> values
KEYS = ("config", "methods", "axes")  # of a grid's file


class Sweep(Study):
    """A study of one part, whose axes were given."""

    kind = "sweep"


def sweep(
    axes: Axes | Sequence[str] | Path | str,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str | None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Sweep:
    """Run methods on every combination of values, a comparison for each, and write tables, a CSV file and figures.

    Args:
        axes: "section.key" -> values, or texts such as "fedpgp.mu=0.1,1", or a TOML file: see `read_sweep`.
        methods, config: None takes those of the file, or zero-shot, local, promptfl and fedpgp on the embedded recipe.
        output: a directory; after Ctrl-C, a kill or an error, `resume_sweep(output)` goes on. None runs nothing: what
            is returned has only what `Study.plan` and `Study.check` need.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work where an axis, any cell or the output do not fit.
    """
    named: dict[str, Axis] = {}
    if isinstance(axes, Path | str):
        named, of_file, in_file = read_sweep(Path(axes))
        methods = of_file if methods is None else methods
        config = in_file if config is None else config
    elif isinstance(axes, Mapping):
        named = {key: axis_of_values(key, values) for key, values in axes.items()}
    else:
        for key, axis in map(axis_of_text, axes):
            if key in named:
                raise ConfigError(f"{key} must be given once, with all its values: {key}=a,b,c")
            named[key] = axis
    if not named:
        raise ConfigError("a grid must have an axis or more, such as --grid fedpgp.mu=0.1,1")
    names = check_methods(HEADLINE if methods is None else methods)
    study = Sweep([StudyPart("", named)], names, chosen_seeds(seeds, "seeds"), config=config, changes=changes)
    return study.run(output, force, options)


def resume_sweep(directory: Path | str, **options: Unpack[ExecutionOptions]) -> Sweep:
    """Go on with a sweep that was stopped; where all cells are finished, write tables and figures again."""
    return Sweep.resume(Path(directory), options)


def load_sweep(directory: Path | str) -> Sweep:
    """Return what a directory of `fedpgp sweep` holds; raises OutputError where it is not finished."""
    return Sweep.load(Path(directory))


def read_sweep(file: Path) -> tuple[dict[str, Axis], list[str] | None, str | None]:
    """Return the axes of a TOML file, and the methods and the config that it names.

    A table for each axis in [axes], see `fedpgp.studies.axes.read_axes`; methods = […] and config = "…" before them.
    Raises ConfigError, naming the file.
    """
    tables = read_toml(file, "grid")
    for key in tables:
        if key not in KEYS:
            raise ConfigError(f"{file}: {key} is not a key of a grid; {nearest(key, KEYS)}")
    methods = tables.get("methods")
    if methods is not None and not (isinstance(methods, list) and all(isinstance(name, str) for name in methods)):
        raise ConfigError(f"{file}: methods must be a list of names, got {methods!r}")
    return read_axes(tables.get("axes"), f"{file}: axes"), methods, tables.get("config")
