"""Runs the settings of all studies, each of them once, and knows which belong together."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpgp import __version__
from fedpgp.ablation.study import Study, check_studies, read_studies
from fedpgp.bootstrap import Difference, differences
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.directory import ABLATION, check_output, load_comparison, locked, run_directory, writing
from fedpgp.errors import ConfigError, DataError, OutputError
from fedpgp.experiment import HEADLINE, chosen_methods, chosen_seeds, compare, resume
from fedpgp.files import write, write_json
from fedpgp.laboratory import Reporter, Silent, checked
from fedpgp.methods import METHODS
from fedpgp.plugins import installed
from fedpgp.report.ablation import write_ablation
from fedpgp.results import Comparison, Run

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
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Ablation:
    """Runs every setting of the studies with the same seeds, and writes a table and a figure for each study.

    Args:
        method: the one that is studied, by its name.
        studies: names of those in the file; None takes all. file: see `fedpgp.ablation.study.read_studies`.
        output: a directory; after Ctrl-C, a kill or an error, `resume_ablation(output)` goes on.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work where the method, a study, the config or the output do not fit.
    """
    (name,), settings = chosen_methods(method, config, changes)
    if name not in {*METHODS, *installed()}:
        raise ConfigError(f"method must be one of ours or of an installed package, got {method!r}: install it")
    chosen, of_all, directory = read_studies(file, studies), chosen_seeds(seeds, "seeds"), Path(output)
    record = {"fedpgp": __version__, "method": name, "seeds": of_all, "studies": chosen}
    check_output(directory, force)
    for study, of_study in _places(config, changes, chosen).items():
        for label, (_, of_setting) in of_study.items():
            with _of_setting(study, label):
                checked(of_setting, [name], of_all)
    with run_directory(directory, force) as scratch:
        write(scratch / CONFIG, settings.to_toml().encode())
        write_json(scratch / ABLATION, record)
    return resume_ablation(directory, workers=workers, cache=cache, skip_bad_images=skip_bad_images, reporter=reporter)


def resume_ablation(
    directory: Path | str,
    *,
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Ablation:
    """Goes on with ablations that were stopped; where all are finished, writes tables and figures again."""
    directory, told = Path(directory), reporter or Silent()
    record = _read(directory)
    if record["fedpgp"] != __version__:
        raise OutputError(
            f"{directory} holds ablations of fedpgp {record['fedpgp']}, here is {__version__}: go on with that version,"
            " or begin again in another directory"
        )
    method, seeds = record["method"], record["seeds"]
    places = _places(directory / CONFIG, (), record["studies"])
    configs = {STANDS: load_config(directory / CONFIG)}
    configs |= {place: config for of_study in places.values() for place, config in of_study.values()}
    told.notice(f"{len(configs)} settings of {method}, {len(seeds)} seeds each")
    with locked(directory):
        for count, (place, config) in enumerate(configs.items()):
            told.progress("settings", count, len(configs), place)
            names = list(dict.fromkeys([*HEADLINE, method])) if place == STANDS else [method]
            cell = directory / place
            if not cell.exists():
                compare(
                    names,
                    seeds,
                    config=config,
                    output=cell,
                    workers=workers,
                    cache=cache,
                    skip_bad_images=skip_bad_images,
                )
            elif not (cell / "comparison.json").exists():
                resume(cell, workers=workers, cache=cache, skip_bad_images=skip_bad_images)
        found = load_ablation(directory)
        with writing(directory, f"free space, then go on with: fedpgp ablate --resume {directory}"):
            write_ablation(found, directory)
        told.progress("settings", len(configs), len(configs))
    return found


def load_ablation(directory: Path | str) -> Ablation:
    """What a directory of `fedpgp ablate` holds; raises OutputError where it is not finished."""
    directory = Path(directory)
    record = _read(directory)
    places = _places(directory / CONFIG, (), record["studies"])
    found: dict[str, Comparison] = {}
    for place in dict.fromkeys([STANDS, *(place for of_study in places.values() for place, _ in of_study.values())]):
        if not (directory / place / "comparison.json").exists():
            raise OutputError(
                f"{directory} is not finished: {place} is missing; go on with: fedpgp ablate --resume {directory}"
            )
        found[place] = load_comparison(directory / place)
    return Ablation(
        record["method"],
        found[STANDS],
        {study: {label: found[place] for label, (place, _) in of_study.items()} for study, of_study in places.items()},
    )


def _places(
    file: Path | str | None, changes: Sequence[str], studies: Mapping[str, Study]
) -> dict[str, dict[str, tuple[str, ExperimentConfig]]]:
    """Study -> label -> directory and config of a setting; equal settings are one, the config as it stands among them.

    Raises ConfigError where a setting is not possible.
    """
    known = [(STANDS, load_config(file, changes))]
    places: dict[str, dict[str, tuple[str, ExperimentConfig]]] = {}
    for study, labels in studies.items():
        places[study] = {}
        for number, (label, of_setting) in enumerate(labels.items()):
            with _of_setting(study, label):
                config = load_config(file, [*changes, *of_setting])
            same = next((entry for entry in known if entry[1] == config), None)
            if same is None:
                # The number tells apart labels that differ in what a path cannot have.
                same = (f"{study}/{number}-{re.sub('[^a-z0-9.]+', '-', label.lower())}", config)
                known.append(same)
            places[study][label] = same
    return places


@contextmanager
def _of_setting(study: str, label: str) -> Iterator[None]:
    """Says of which setting a config or a task cannot be."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise ConfigError(f"study {study}, setting {label!r}: {error}") from error


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
