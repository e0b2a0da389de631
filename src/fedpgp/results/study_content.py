"""The content of the files of a study, as models that check it and do not change it; see `fedpgp.results.content`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedpgp.results.content import Content, Count, MethodName, Name, Number, Object, Seconds, Seed
from fedpgp.runtime import limits

AxisName = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]  # a part of a path
PartName = Annotated[str, Field(max_length=200, pattern="^$|[A-Za-z0-9]")]  # its letters are a part of a path
Axis = Annotated[dict[Name, list[Name]], Field(min_length=1, max_length=limits.RUNS)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=limits.RUNS)]
Value = str | int | float | bool | None  # of a field that is searched
Methods = Annotated[list[MethodName], Field(max_length=limits.RUNS)]


class StudyRecord(Content):
    """What the record of every study has."""

    fedpgp: Name
    code: dict[Name, Name | None] = Field(default={})


class PartContent(Content):
    """A part of a sweep or a reproduction."""

    name: PartName
    axes: dict[AxisName, Axis]
    changes: list[Name]
    mean: Name | None
    methods: Methods = Field(default=[])

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mean is not None and self.mean not in self.axes:
            raise ValueError(f"mean must be one of the axes, got {self.mean!r}")
        return self


class SweepRecord(StudyRecord):
    """sweep.json."""

    parts: Annotated[list[PartContent], Field(min_length=1)]
    methods: Annotated[Methods, Field(min_length=1)]
    seeds: Seeds
    asked: Object


class AskedOfReproduction(Content):
    """The arguments of a reproduction."""

    recipe: Name
    embedded: bool
    command: Name


class ReproductionRecord(SweepRecord):
    """reproduction.json."""

    asked: AskedOfReproduction  # type: ignore[assignment]


class AblationRecord(StudyRecord):
    """ablation.json."""

    method: MethodName
    seeds: Seeds
    studies: dict[AxisName, Axis]


class RangeContent(Content):
    """A range that is searched."""

    low: int | float
    high: int | float
    log: bool = False


class TuningRecord(StudyRecord):
    """tuning.json."""

    trials: Annotated[int, Field(ge=1, le=limits.RUNS)]
    seeds: Seeds
    objective: Literal["local", "base", "novel", "hm", "cm"]
    spaces: Annotated[
        dict[MethodName, dict[Name, Annotated[list[Value], Field(min_length=1)] | RangeContent]], Field(min_length=1)
    ]


class TrialContent(Content):
    """A line of trials.jsonl."""

    method: MethodName
    number: Count
    settings: dict[Name, Value]
    value: Number | None
    figures: dict[Name, Number]
    seconds: Seconds
    reason: str = ""


RECORDS: dict[str, type[StudyRecord]] = {
    "sweep": SweepRecord,
    "reproduction": ReproductionRecord,
    "ablation": AblationRecord,
    "tuning": TuningRecord,
}
