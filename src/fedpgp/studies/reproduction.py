"""Runs a recipe of the paper's experiments as a grid."""

import json
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.errors import ConfigError
from fedpgp.results.run_store import REPRODUCTION
from fedpgp.runs.choices import chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.studies.cells import StudyCell
from fedpgp.studies.plan import Found, Grid, check_methods
from fedpgp.studies.recipe import Recipe, read_recipe
from fedpgp.studies.run import begin_grid, finish_grid, load_grid, planned_grid


def reproduce(
    name: str,
    *,
    data: Path | str | None = None,
    backbone: str | None = None,
    embedded: bool = False,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    changes: Sequence[str] = (),
    output: Path | str,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Found:
    """Runs an experiment of the paper, and writes its table as reproduction.md, .tex and .csv.

    Args:
        name: of a recipe, see `fedpgp reproduce --list`.
        data: the directory below which the known data sets lie; None takes data.
        backbone: a directory or a hub id; None takes the paper's ViT-B/16.
        embedded: on pictograms with pictoclip, in minutes; then there is neither data nor backbone.
        methods: None takes those of the recipe. changes: further ones, of all cells.
        output: a directory; after Ctrl-C, a kill or an error, `resume_reproduction(output)` goes on.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work, with a line for everything that is missing and what to do about it.
    """
    recipe = read_recipe(name)
    grid, file, of_all = asked(recipe, data, backbone, embedded, methods, seeds, changes)
    begin_grid(grid, REPRODUCTION, file, of_all, Path(output), force)
    return resume_reproduction(output, **options)


def resume_reproduction(
    directory: Path | str,
    **options: Unpack[ExecutionOptions],
) -> Found:
    """Goes on with what was stopped; where all cells are finished, writes the tables again."""
    return finish_grid(
        Path(directory),
        REPRODUCTION,
        Execution(**options),
    )


def load_reproduction(directory: Path | str) -> Found:
    """What a directory of `fedpgp reproduce` holds; raises OutputError where it is not finished."""
    return load_grid(Path(directory), REPRODUCTION)


def planned(
    name: str,
    *,
    data: Path | str | None = None,
    backbone: str | None = None,
    embedded: bool = False,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    changes: Sequence[str] = (),
) -> tuple[str, list[StudyCell]]:
    """What would be done, in a line and as cells, after the checks of `reproduce`; nothing is written."""
    grid, file, of_all = asked(read_recipe(name), data, backbone, embedded, methods, seeds, changes)
    return planned_grid(grid, file, of_all)


def asked(
    recipe: Recipe,
    data: Path | str | None,
    backbone: str | None,
    embedded: bool,
    methods: Sequence[str] | None,
    seeds: int | Sequence[int],
    changes: Sequence[str],
) -> tuple[Grid, Path | None, list[str]]:
    """The grid of a recipe, the config that it changes, and how; raises ConfigError for what does not go together."""
    if embedded and (data is not None or backbone is not None):
        raise ConfigError("--embedded has data and a checkpoint of its own: leave out --data and --backbone, or it")
    if embedded and not recipe.embedded:
        raise ConfigError(f"{recipe.name} cannot be run with --embedded: {recipe.embedded_note}")
    places = [] if data is None else [f"data.root={json.dumps(str(data), ensure_ascii=False)}"]
    places += [] if backbone is None else [f"backbone.checkpoint={json.dumps(backbone, ensure_ascii=False)}"]
    of_recipe = recipe.embedded_methods if embedded else recipe.methods
    chosen = chosen_seeds(seeds, "seeds")
    command = " ".join(
        [
            f"fedpgp reproduce {recipe.name}",
            *(["--embedded"] if embedded else []),
            *([f"--data {data}"] if data is not None else []),
            *([f"--backbone {backbone}"] if backbone is not None else []),
            f"--seeds {len(chosen)}",
            *([f"--methods {','.join(methods)}"] if methods is not None else []),
            *(f"--set {change!r}" for change in changes),
        ]
    )
    grid = Grid(
        recipe.embedded if embedded else recipe.parts,
        check_methods(of_recipe if methods is None else methods),
        chosen,
        {"recipe": recipe.name, "embedded": embedded, "command": command},
    )
    return grid, None if embedded else recipe.file, [*places, *changes]
