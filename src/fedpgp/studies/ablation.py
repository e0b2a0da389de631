"""Ablations: several studies of one method, each of which varies one thing."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from typing_extensions import Unpack

from fedpgp.evaluation.bootstrap import Difference, differences
from fedpgp.methods import Method
from fedpgp.results.run import Comparison, Run
from fedpgp.runs.choices import HEADLINE, chosen_seeds, one_method
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.axes import Axis, check_studies, read_studies, slug
from fedpgp.studies.study import CONFIG, Key, Study, StudyPart, named, recorded_methods

STANDS = "as-it-stands"  # name of the part that runs the config without changes
SETTING = "setting"  # name of the only axis of every other part


class _AblationPart(StudyPart):
    """One study: its settings are the points of its only axis."""

    def describe(self, key: Key) -> str:
        return f"study {self.name}, setting {key[1]!r}"

    def place(self, key: Key) -> str:
        return f"{self.name}/{list(self.axes[SETTING]).index(key[1])}-{slug(key[1])}"


class Ablation(Study):
    """Ablations of one method. The first part runs the config without changes, and each other part is a study."""

    kind = "ablation"

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.methods[0]

    @property
    def standing(self) -> Comparison:
        """Comparison of the method, zero-shot CLIP, Local and PromptFL with the config without changes."""
        return self.comparisons[STANDS,]

    @cached_property
    def settings(self) -> Mapping[str, Mapping[str, Comparison]]:
        """Mapping of study -> label of a setting -> comparison with the runs of the method."""
        return {
            part.name: {label: self.comparisons[part.name, label] for label in part.axes[SETTING]}
            for part in self.parts[1:]
        }

    def of(self, study: str, label: str) -> list[Run]:
        """Return the runs of the method with one setting of a study."""
        return self.settings[study][label].of(self.method)

    def stands(self, study: str, label: str) -> bool:
        """Return whether a setting has the same config as the config without changes."""
        return self.cells[study, label] is self.cells[STANDS,]

    def against_standing(self, study: str, label: str) -> dict[str, Difference] | None:
        """Return the figures of a setting minus those figures with the config without changes.

        The intervals are paired bootstrap intervals over test images. The result is None if both configs are equal.
        """
        if self.stands(study, label):
            return None
        runs = [comparison.of(self.method) for comparison in (self.settings[study][label], self.standing)]
        first, second = ([run.resampled for run in of_one] for of_one in runs)
        return differences(first, second)

    def plan(self) -> str:
        """Return one line that says what is run."""
        return f"{len(self.distinct_cells)} settings of {self.method}, {len(self.seeds)} seeds each"

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for every run of every setting."""
        return [
            {"study": study, SETTING: label, **run.row}
            for study, labels in self.settings.items()
            for label in labels
            for run in self.of(study, label)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {"method": self.method, "task": self.standing.task, "rows": self.rows()}

    def record(self) -> dict[str, Any]:
        """Return what ablation.json keeps of the ablations."""
        studies = {part.name: part.axes[SETTING] for part in self.parts[1:]}
        return {"method": self.method, "seeds": list(self.seeds), "studies": studies}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], directory: Path, own: Mapping[str, Method]) -> Self:
        """Return the ablations that a record and the config in a directory describe."""
        check_studies(record["studies"], directory / f"{cls.kind}.json")
        methods = recorded_methods([record["method"]], own, directory)
        parts = _parts(record["method"], record["studies"])
        return cls(parts, methods, record["seeds"], config=directory / CONFIG, own=own)


def ablate(
    method: str | Method = "fedpgp",
    *,
    studies: Sequence[str] | None = None,
    file: Path | str | None = None,
    seeds: int | Sequence[int] = 3,
    config: Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str | None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Ablation:
    """Run every setting of the studies with the same seeds, and write a table and a figure for each study.

    Parameters
    ----------
    method
        Name of the method that is studied, or its file "path/to/file.py:Name".
    studies
        Names of studies in `file`; None runs all of them.
    file
        TOML file of studies, see `fedpgp.studies.axes.read_studies`; None takes the studies of the package.
    seeds
        Number of seeds, or the seeds themselves.
    config
        TOML file or name of a recipe; None takes the default recipe.
    changes
        Changes of the config, such as "task.shots=4".
    output
        Directory for the results. After Ctrl-C, a kill or an error, `resume_ablation(output)` continues the work.
        None runs nothing: the returned object has only what `Study.plan` and `Study.check` need.
    force
        Replace an existing output directory.
    **options
        Options of `fedpgp.compare` about how runs are executed.

    Raises
    ------
    FedPGPError
        Before any work, if the method, a study, the config or the output does not fit.
    """
    name, _ = one_method(method, None, ())
    parts, (names, own) = _parts(name, read_studies(file, studies)), named([method])
    study = Ablation(parts, names, chosen_seeds(seeds, "seeds"), config=config, changes=changes, own=own)
    return study.run(output, force, options)


def resume_ablation(
    directory: Path | str, *, methods: Sequence[str | Method] = (), **options: Unpack[ExecutionOptions]
) -> Ablation:
    """Continue interrupted ablations; if all are finished, write their tables and figures again.

    `methods`: the method, if it is neither built in nor from an installed package.
    """
    return Ablation.resume(Path(directory), methods, options)


def load_ablation(directory: Path | str, *, methods: Sequence[str | Method] = ()) -> Ablation:
    """Return the ablations that `fedpgp ablate` wrote into a directory. `methods`: as in `resume_ablation`.

    Raises
    ------
    OutputError
        If the ablations are not finished.
    """
    return Ablation.load(Path(directory), methods)


def _parts(method: str, studies: Mapping[str, Axis]) -> list[StudyPart]:
    standing = StudyPart(STANDS, {}, methods=list(dict.fromkeys([*HEADLINE, method])))
    return [standing, *(_AblationPart(study, {SETTING: axis}) for study, axis in studies.items())]
