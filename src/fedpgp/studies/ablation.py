"""Runs the settings of all studies, each of them once, and knows which belong together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import ConfigError, OutputError
from fedpgp.evaluation.bootstrap import Difference, differences
from fedpgp.methods import METHODS
from fedpgp.methods.plugins import installed
from fedpgp.results.run import Comparison, Run
from fedpgp.results.run_store import ABLATION, check_output, locked, run_directory, writing
from fedpgp.runs.choices import HEADLINE, chosen_methods, chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runtime.files import write, write_json
from fedpgp.runtime.version import __version__
from fedpgp.studies.axes import slug
from fedpgp.studies.cells import StudyCell, check_cells, distinct, load_cells, naming, run_cells
from fedpgp.studies.search import Study, check_studies, read_studies

CONFIG, STANDS = "config.toml", "as-it-stands"


@dataclass(frozen=True)
class Ablation:
    """What the studies of one method gave.

    standing: the method, zero-shot CLIP, Local and PromptFL with the config as it stands. settings: study -> label ->
    the comparison that holds the method's runs.
    """

    method: str
    standing: Comparison
    settings: Mapping[str, Mapping[str, Comparison]]

    def of(self, study: str, label: str) -> list[Run]:
        return self.settings[study][label].of(self.method)

    def against_standing(self, study: str, label: str) -> dict[str, Difference] | None:
        """A setting minus the config as it stands: paired bootstrap over test images; None where they are the same."""
        if self.settings[study][label] is self.standing:
            return None
        runs = [comparison.of(self.method) for comparison in (self.settings[study][label], self.standing)]
        first, second = ([run.resampled for run in of_one] for of_one in runs)
        return differences(first, second)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row for every run of every setting."""
        return [
            {"study": study, "setting": label, **run.row}
            for study, labels in self.settings.items()
            for label in labels
            for run in self.of(study, label)
        ]

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {"method": self.method, "task": self.standing.task, "rows": self.rows}


def ablate(
    method: str = "fedpgp",
    *,
    studies: Sequence[str] | None = None,
    file: Path | str | None = None,
    seeds: int | Sequence[int] = 3,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Ablation:
    """Runs every setting of the studies with the same seeds, and writes a table and a figure for each study.

    Args:
        method: the one that is studied, by its name.
        studies: names of those in the file; None takes all. file: see `fedpgp.studies.search.read_studies`.
        output: a directory; after Ctrl-C, a kill or an error, `resume_ablation(output)` goes on.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work where the method, a study, the config or the output do not fit.
    """
    name, settings, chosen, of_all = _asked(method, studies, file, seeds, config, changes)
    directory = Path(output)
    record = {"fedpgp": __version__, "method": name, "seeds": of_all, "studies": chosen}
    check_output(directory, force)
    check_cells(distinct(_cells(config, changes, name, chosen)), of_all)
    with run_directory(directory, force) as scratch:
        write(scratch / CONFIG, settings.to_toml().encode())
        write_json(scratch / ABLATION, record)
    return resume_ablation(directory, **options)


def planned(
    method: str = "fedpgp",
    *,
    studies: Sequence[str] | None = None,
    file: Path | str | None = None,
    seeds: int | Sequence[int] = 3,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
) -> tuple[str, list[StudyCell]]:
    """What `ablate` would do, in a line and as cells, after its checks; nothing is written."""
    name, _, chosen, of_all = _asked(method, studies, file, seeds, config, changes)
    cells = distinct(_cells(config, changes, name, chosen))
    check_cells(cells, of_all)
    return _in_words(cells, name, of_all), cells


def resume_ablation(
    directory: Path | str,
    **options: Unpack[ExecutionOptions],
) -> Ablation:
    """Goes on with ablations that were stopped; where all are finished, writes tables and figures again."""
    directory, execution = Path(directory), Execution(**options)
    record = _read(directory)
    if record["fedpgp"] != __version__:
        raise OutputError(
            f"{directory} holds ablations of fedpgp {record['fedpgp']}, here is {__version__}: go on with that version,"
            " or begin again in another directory"
        )
    method, seeds = record["method"], record["seeds"]
    cells = distinct(_cells(directory / CONFIG, (), method, record["studies"]))
    execution.listener.notice(_in_words(cells, method, seeds))
    with locked(directory):
        run_cells(
            cells,
            seeds,
            directory,
            execution,
        )
        found = load_ablation(directory)
        if execution.writers is not None:
            with writing(directory, f"free space, then go on with: fedpgp ablate --resume {directory}"):
                execution.writers.ablation(found, directory)
    return found


def load_ablation(directory: Path | str) -> Ablation:
    """What a directory of `fedpgp ablate` holds; raises OutputError where it is not finished."""
    directory = Path(directory)
    record = _read(directory)
    cells = _cells(directory / CONFIG, (), record["method"], record["studies"])
    found = load_cells(distinct(cells), directory, f"fedpgp ablate --resume {directory}")
    settings = {
        study: {label: found[cells[study, label].place] for label in record["studies"][study]}
        for study in record["studies"]
    }
    return Ablation(record["method"], found[STANDS], settings)


def _asked(
    method: str,
    studies: Sequence[str] | None,
    file: Path | str | None,
    seeds: int | Sequence[int],
    config: Path | str | None,
    changes: Sequence[str],
) -> tuple[str, ExperimentConfig, dict[str, Study], list[int]]:
    """The method's name, the config as it stands, the studies and the seeds."""
    (name,), settings = chosen_methods(method, config, changes)
    if name not in {*METHODS, *installed()}:
        raise ConfigError(f"method must be one of ours or of an installed package, got {method!r}: install it")
    return name, settings, read_studies(file, studies), chosen_seeds(seeds, "seeds")


def _in_words(cells: Sequence[StudyCell], method: str, seeds: Sequence[int]) -> str:
    return f"{len(cells)} settings of {method}, {len(seeds)} seeds each"


def _cells(
    file: Path | str | None, changes: Sequence[str], method: str, studies: Mapping[str, Study]
) -> dict[tuple[str, str], StudyCell]:
    """Study and label -> cell of a setting, the config as it stands first; equal settings are one.

    Raises ConfigError where a setting is not possible.
    """
    standing = StudyCell(STANDS, STANDS, load_config(file, changes), tuple(dict.fromkeys([*HEADLINE, method])))
    cells = {(STANDS, STANDS): standing}
    for study, labels in studies.items():
        for number, (label, of_setting) in enumerate(labels.items()):
            name = f"study {study}, setting {label!r}"
            with naming(name):
                config = load_config(file, [*changes, *of_setting])
            same = next((cell for cell in cells.values() if cell.config == config), None)
            # The number tells apart labels that differ in what a path cannot have.
            cells[study, label] = same or StudyCell(f"{study}/{number}-{slug(label)}", name, config, (method,))
    return cells


def _read(directory: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((directory / ABLATION).read_text(encoding="utf-8"))
        record["fedpgp"], record["method"], record["seeds"], record["studies"]  # KeyError where one is missing
        check_studies(directory / ABLATION, record["studies"])
        return record
    except FileNotFoundError as error:
        raise OutputError(f"{directory} holds no ablations; name a directory that fedpgp ablate wrote") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{directory / ABLATION} is damaged: {error}; begin again in another directory") from error
