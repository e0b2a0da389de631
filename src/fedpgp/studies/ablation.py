"""Ablations: one thing of a method is varied at a time, in each of several studies."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from typing_extensions import Unpack

from fedpgp.evaluation.bootstrap import Difference, differences
from fedpgp.results.run import Comparison, Run
from fedpgp.runs.choices import HEADLINE, chosen_seeds
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.studies.axes import Axis, check_studies, read_studies, slug
from fedpgp.studies.study import CONFIG, Key, Study, StudyPart, check_methods

STANDS = "as-it-stands"  # the part of the config without changes
SETTING = "setting"  # the axis of every other part


class _AblationPart(StudyPart):
    """One study: its settings are the points of its one axis."""

    def describe(self, key: Key) -> str:
        return f"study {self.name}, setting {key[1]!r}"

    def place(self, key: Key) -> str:
        return f"{self.name}/{list(self.axes[SETTING]).index(key[1])}-{slug(key[1])}"


class Ablation(Study):
    """The ablations of one method. The first part is the config as it stands, and each other part is a study."""

    kind = "ablation"

    @property
    def method(self) -> str:
        return self.methods[0]

    @property
    def standing(self) -> Comparison:
        """The method, zero-shot CLIP, Local and PromptFL with the config as it stands."""
        return self.comparisons[STANDS,]

    @cached_property
    def settings(self) -> Mapping[str, Mapping[str, Comparison]]:
        """Study -> label -> the comparison that holds the method's runs."""
        return {
            part.name: {label: self.comparisons[part.name, label] for label in part.axes[SETTING]}
            for part in self.parts[1:]
        }

    def of(self, study: str, label: str) -> list[Run]:
        return self.settings[study][label].of(self.method)

    def stands(self, study: str, label: str) -> bool:
        """Return whether a setting is the config as it stands."""
        return self.cells[study, label] is self.cells[STANDS,]

    def against_standing(self, study: str, label: str) -> dict[str, Difference] | None:
        """A setting minus the config as it stands: paired bootstrap over test images; None where they are the same."""
        if self.stands(study, label):
            return None
        runs = [comparison.of(self.method) for comparison in (self.settings[study][label], self.standing)]
        first, second = ([run.resampled for run in of_one] for of_one in runs)
        return differences(first, second)

    def plan(self) -> str:
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
        return {"method": self.method, "task": self.standing.task, "rows": self.rows()}

    def record(self) -> dict[str, Any]:
        studies = {part.name: part.axes[SETTING] for part in self.parts[1:]}
        return {"method": self.method, "seeds": list(self.seeds), "studies": studies}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], directory: Path) -> Self:
        check_studies(record["studies"], directory / f"{cls.kind}.json")
        methods = check_methods([record["method"]])
        return cls(_parts(record["method"], record["studies"]), methods, record["seeds"], config=directory / CONFIG)


def ablate(
    method: str = "fedpgp",
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

    Args:
        method: the one that is studied, by its name.
        studies: names of those in the file; None takes all. file: see `fedpgp.studies.axes.read_studies`.
        output: a directory; after Ctrl-C, a kill or an error, `resume_ablation(output)` goes on. None runs nothing:
            what is returned has only what `Study.plan` and `Study.check` need.
        The rest as in `fedpgp.compare`.

    Raises:
        FedPGPError: before any work where the method, a study, the config or the output do not fit.
    """
    methods, parts = check_methods([method]), _parts(method, read_studies(file, studies))
    study = Ablation(parts, methods, chosen_seeds(seeds, "seeds"), config=config, changes=changes)
    return study.run(output, force, options)


def resume_ablation(directory: Path | str, **options: Unpack[ExecutionOptions]) -> Ablation:
    """Go on with ablations that were stopped; where all are finished, write tables and figures again."""
    return Ablation.resume(Path(directory), options)


def load_ablation(directory: Path | str) -> Ablation:
    """Return what a directory of `fedpgp ablate` holds; raises OutputError where it is not finished."""
    return Ablation.load(Path(directory))


def _parts(method: str, studies: Mapping[str, Axis]) -> list[StudyPart]:
    standing = StudyPart(STANDS, {}, methods=list(dict.fromkeys([*HEADLINE, method])))
    return [standing, *(_AblationPart(study, {SETTING: axis}) for study, axis in studies.items())]
