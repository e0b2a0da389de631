"""Reproductions of the experiments of the paper, on the data of the paper or on the embedded data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.errors import ConfigError
from fedpgp.methods import Method
from fedpgp.runs.choices import chosen_seeds
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.recipe import read_recipe
from fedpgp.studies.study import Study, named


class Reproduction(Study):
    """A study with the parts of a recipe; `asked` has the recipe, whether it is embedded, and the command."""

    kind = "reproduction"


def reproduce(
    name: str,
    *,
    data: Path | str | None = None,
    backbone: str | None = None,
    embedded: bool = False,
    methods: Sequence[str | Method] | None = None,
    seeds: int | Sequence[int] = 3,
    changes: Sequence[str] = (),
    output: Path | str | None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Reproduction:
    """Run an experiment of the paper, and write its table as reproduction.md, .tex and .csv.

    Parameters
    ----------
    name
        Name of a recipe, see `fedpgp reproduce --list`.
    data
        Directory that contains the known datasets; None takes the directory "data".
    backbone
        Directory or hub id of a checkpoint; None takes the ViT-B/16 of the paper.
    embedded
        Use pictograms and pictoclip, which takes minutes; `data` and `backbone` must then be None.
    methods
        Names of the methods of all cells, or files "path/to/file.py:Name"; None takes the methods of the recipe.
    seeds
        Number of seeds, or the seeds themselves.
    changes
        Further changes of the config of all cells, such as "task.shots=4".
    output
        Directory for the results. After Ctrl-C, a kill or an error, `resume_reproduction(output)` continues the work.
        None runs nothing: the returned object has only what `Study.plan` and `Study.check` need.
    force
        Replace an existing output directory.
    **options
        Options of `fedpgp.compare` about how runs are executed.

    Raises
    ------
    FedPGPError
        Before any work. The message has a line, with a remedy, for everything that is missing.
    """
    recipe, chosen = read_recipe(name), chosen_seeds(seeds, "seeds")
    if embedded and (data is not None or backbone is not None):
        raise ConfigError(
            "the embedded experiment has its own data and checkpoint",
            where="--embedded",
            remedy="Leave out --data and --backbone, or leave out --embedded",
        )
    if embedded and not recipe.embedded:
        raise ConfigError(
            f"{recipe.name} has no embedded experiment: {recipe.embedded_note}",
            where="--embedded",
            got=recipe.name,
            remedy="Leave out --embedded, and use --data and --backbone",
        )
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
        command.append(f"--methods {','.join(map(str, methods))}")
        parts = [replace(part, methods=()) for part in parts]
    command += [f"--set {change!r}" for change in changes]
    names, own = named(methods)
    study = Reproduction(
        parts,
        names,
        chosen,
        {"recipe": recipe.name, "embedded": embedded, "command": " ".join(command)},
        None if embedded else recipe.file,
        [*places, *changes],
        own=own,
    )
    return study.run(output, force, options)


def resume_reproduction(
    directory: Path | str, *, methods: Sequence[str | Method] = (), **options: Unpack[ExecutionOptions]
) -> Reproduction:
    """Continue an interrupted reproduction; if all cells are finished, write the tables again.

    `methods`: the methods that are neither built in nor from an installed package.
    """
    return Reproduction.resume(Path(directory), methods, options)


def load_reproduction(directory: Path | str, *, methods: Sequence[str | Method] = ()) -> Reproduction:
    """Return the reproduction that `fedpgp reproduce` wrote into a directory. `methods`: as in `resume_reproduction`.

    Raises
    ------
    OutputError
        If the reproduction is not finished.
    """
    return Reproduction.load(Path(directory), methods)
