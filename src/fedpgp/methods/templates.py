"""Hand-written prompts, with {} for the class name. The field `guidance` of a method selects them."""

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
        description='Hand-written prompts: "template" for "a photo of a {}.", "dataset" for the prompt of the dataset,'
        ' "ensemble" or "ensemble-60" for 7 or 60 prompts of CLIP'
    ),
]
AuthorsGuidance = Annotated[
    GuidanceKind | Literal["authors"],
    Field(
        description='Hand-written prompts for z_C: "template" for "a photo of a {}." (ours), "authors" for the prompts'
        ' in the authors\' code, "dataset" for the prompt of the dataset, "ensemble" or "ensemble-60" for 7 or 60'
        " prompts of CLIP"
    ),
]


@cache
def _tables() -> Mapping[str, Any]:
    """Return the content of templates.toml."""
    return tomllib.loads((resources.files("fedpgp.methods") / "templates.toml").read_text(encoding="utf-8"))


def templates_of(guidance: str, task: Task, method: str = "") -> Sequence[str]:
    """Return the hand-written prompts that a value of the field `guidance` selects.

    Parameters
    ----------
    guidance
        "template" for "a photo of a {}."; "dataset" for the prompt of the dataset; "ensemble" or "ensemble-60" for 7 or
        60 prompts of CLIP; "authors" for the prompt that the authors of the method use for this dataset, or the prompt
        of the dataset if they have none.
    task
        The task, for its dataset.
    method
        Name of the method, for "authors".
    """
    if guidance == "template":
        return (TEMPLATE,)
    if guidance.startswith("ensemble"):
        return tuple(_tables()[guidance])
    of_authors = _tables()["authors"].get(method, {}) if guidance == "authors" else {}
    return (of_authors[task.train.name],) if task.train.name in of_authors else task.templates


class Guided:
    """Base class of methods whose field `guidance` selects the hand-written prompts for z_C."""

    name: ClassVar[str]
    guidance: str

    def templates(self, task: Task) -> Sequence[str]:
        return templates_of(self.guidance, task, self.name)
