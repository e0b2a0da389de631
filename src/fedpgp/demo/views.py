"""Parts of the view that the server sends to every page, in JSON's types."""

import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from fedpgp.demo.federation import Models
from fedpgp.demo.stage import MIXTURES, Choices, DemoSetup

NO_IMAGES = "This machine has only the features of the images, so the page shows no images."


@dataclass
class LiveRun:
    """A federation that was started; `seconds` is the time from its start to its last finished round."""

    number: int
    choices: Choices
    clients: dict[str, Any]
    by: str
    started: float
    stop: threading.Event = field(default_factory=threading.Event)
    zero_shot: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    models: Models = field(default_factory=dict)
    seconds: float = 0.0

    def view(self) -> dict[str, Any]:
        """Return what a page shows of the current federation."""
        return {
            "number": self.number,
            "choices": asdict(self.choices),
            "clients": self.clients,
            "zero_shot": self.zero_shot,
            "rounds": [*_figures_only(self.rounds[:-1]), *self.rounds[-1:]],
            "seconds": self.seconds,
        }

    def earlier_view(self) -> dict[str, Any]:
        """Return what a page shows of an earlier federation."""
        return {"choices": asdict(self.choices), "rounds": _figures_only(self.rounds)}


def setting(stage: DemoSetup) -> dict[str, Any]:
    """Return what depends only on the subject: the slider's positions, class names, pictures to classify."""
    names, labels = stage.source.class_names, stage.test.labels
    half = len(names) // 2
    return {
        "about": stage.subject.about + ("" if stage.has_images else " " + NO_IMAGES),
        "mixtures": [{"title": mixture.title, "about": mixture.about} for mixture in MIXTURES],
        "base": names[:half],
        "novel": names[half:],
        "samples": [[index, names[labels[index]]] for index in stage.samples],
    }


def difference(before: Choices, after: Choices) -> str:
    """Return the settings that differ, in the words of the page."""
    found = []
    if after.mu != before.mu:
        found.append(f"μ to {after.mu:g}")
    if after.bottleneck != before.bottleneck:
        found.append(f"b to {after.bottleneck}")
    if after.heterogeneity != before.heterogeneity:
        found.append(f"heterogeneity to “{MIXTURES[after.heterogeneity].title}”")
    return " and ".join(found) or "a slider"


def _figures_only(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rounds without the words and the map, which a page shows only of the last round."""
    return [{name: value for name, value in one.items() if name not in ("words", "map")} for one in rounds]
