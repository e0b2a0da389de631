"""Studies of the paper: a recipe's cells, on the paper's data or on the embedded data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.errors import ConfigError
from fedpgp.runs.choices import chosen_seeds
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.recipe import read_recipe
from fedpgp.studies.study import Study, check_methods


class Reproduction(Study):
    """A study whose parts are those of a recipe; `asked` has the recipe, whether it is embedded, and the command."""

    kind = "reproduction"


def reproduce(
    name: str,
    *,
    data: Path | str | None = None,
    backbone: str | None = None,
    embedded: bool = False,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    changes: Sequence[str] = (),
    output: Path | str | None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Reproduction:
    """Run an experiment of the paper, and write its table as reproduction.md, .tex and .csv.

    Args:
        name: of a recipe, see `fedpgp reproduce --list`.
        data: the directory below which the known data sets lie; None takes data.
        backbone: a directory or a hub id; None takes the paper's ViT-B/16.
        embedded: on pictograms with pictoclip, in minutes; then there is neither data nor backbone.
        methods: of all cells; None takes those of the recipe. changes: further ones, of all cells.
        output: a directory; after Ctrl-C, a kill or an error, `resume_reproduction(output)` goes on. None runs nothing:
            what is returned has only what `Study.plan` and `Study.check` need.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work, with a line for everything that is missing and what to do about it.
    """
    recipe, chosen = read_recipe(name), chosen_seeds(seeds, "seeds")
    if embedded and (data is not None or backbone is not None):
        raise ConfigError("--embedded has data and a checkpoint of its own: leave out --data and --backbone, or it")
    if embedded and not recipe.embedded:
        raise ConfigError(f"{recipe.name} cannot be run with --embedded: {recipe.embedded_note}")
    command, places = [f"fedpgp reproduce {recipe.name}"], []
    if embedded:
        command.append("--embedded")
    if data is not None:
        command.append(f"--data {data}")
        places.append(f"data.root={json.dumps(str(data), ensure_ascii=False)}")
    if backbone is not None:
        command.append(f"--backbone {backbone}")
        places.append(f"backbone.checkpoint={json.dumps(backbone, ensure_ascii=False)}")
    command.append(f"--seeds {len(chosen)}")
    parts = recipe.embedded if embedded else recipe.parts
    if methods is None:
        methods = recipe.embedded_methods if embedded else recipe.methods
    else:
        command.append(f"--methods {','.join(methods)}")
        parts = [replace(part, methods=()) for part in parts]
    command += [f"--set {change!r}" for change in changes]
    study = Reproduction(
        parts,
        check_methods(methods),
        chosen,
        {"recipe": recipe.name, "embedded": embedded, "command": " ".join(command)},
        None if embedded else recipe.file,
        [*places, *changes],
    )
    return study.run(output, force, options)


def resume_reproduction(directory: Path | str, **options: Unpack[ExecutionOptions]) -> Reproduction:
    """Go on with a reproduction that was stopped; where all cells are finished, write the tables again."""
    return Reproduction.resume(Path(directory), options)


def load_reproduction(directory: Path | str) -> Reproduction:
    """Return what a directory of `fedpgp reproduce` holds; raises OutputError where it is not finished."""
    return Reproduction.load(Path(directory))
