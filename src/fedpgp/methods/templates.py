"""Hand-written prompts, each with {} for the class name: what a method's `guidance` chooses."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedpgp.data.tasks import Task

TEMPLATE = "a photo of a {}."

GuidanceKind = Literal["template", "dataset", "ensemble", "ensemble-60"]
Guidance = Annotated[
    GuidanceKind,
    Field(
        description='"template": "a photo of a {}."; "dataset": the dataset\'s own; "ensemble", "ensemble-60": CLIP\'s'
    ),
]
AuthorsGuidance = Annotated[
    GuidanceKind | Literal["authors"],
    Field(description='z_C: "template" (ours), "authors" (their code), or as in zero-shot'),
]


@cache
def _tables() -> Mapping[str, Any]:
    """What stands in templates.toml."""
    return tomllib.loads((resources.files("fedpgp.methods") / "templates.toml").read_text(encoding="utf-8"))


def templates_of(guidance: str, task: Task, method: str = "") -> Sequence[str]:
    """The hand-written prompts: "a photo of a {}.", those of the dataset, or CLIP's ensemble of seven or of sixty.

    "authors" are those of the authors of a method for this dataset, where they differ from the dataset's.
    """
    if guidance == "template":
        return (TEMPLATE,)
    if guidance.startswith("ensemble"):
        return tuple(_tables()[guidance])
    of_authors = _tables()["authors"].get(method, {}) if guidance == "authors" else {}
    return (of_authors[task.train.name],) if task.train.name in of_authors else task.templates


class Guided:
    """A part of a method whose field `guidance` chooses the hand-written prompts behind z_C."""

    name: ClassVar[str]
    guidance: str

    def templates(self, task: Task) -> Sequence[str]:
        return templates_of(self.guidance, task, self.name)
