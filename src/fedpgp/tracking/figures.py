"""What trackers are told of a run, as names and plain values."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.report import tables
from fedpgp.results import formats
from fedpgp.results.run import Comparison, Run

GROUPS = ("loss", "cosine", "bytes", "seconds", "validation", "wire")  # what names of a record begin with

SECTIONS = ("task", "federation", "backbone", "privacy")  # of the config, beside the method's own


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round's record: accuracies in percent, losses, cosines, bytes and seconds.

    Named as in rounds.jsonl, but that "loss_task" is "loss/task", and Local of the shared part alone "shared/local";
    "participants" is how many there were.
    """
    figures: dict[str, float] = {}
    for name, value in record.items():
        if name == "participants":
            figures[name] = len(value)
        elif isinstance(value, Mapping):
            figures |= {f"{name}/{key}": float(figure) for key, figure in value.items() if _is_number(figure)}
        elif _is_number(value) and name != "round":
            group, _, rest = name.partition("_")
            figures[f"{group}/{rest}" if rest and group in GROUPS else name] = float(value)
    return figures


def settings(config: ExperimentConfig, method: str, seed: int) -> dict[str, str | int | float | bool]:
    """The method's section, those of `SECTIONS`, and which images they are on: "section.key" -> value.

    What is unset is left out; lists are text.
    """
    sections: dict[str, Any] = {name: getattr(config, name) for name in SECTIONS} | {method: config.methods[method]}
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in asdict(section).items()}
    about = {"method": method, "seed": seed, "data.source": config.data.source}
    return {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in {**about, **values}.items()
        if value is not None
    }


def final(run: Run) -> dict[str, float]:
    """After the last round, in percent: "final/METRIC" of the clients' own models, and "final_shared/METRIC"."""
    parts = {"final": run.results["final"], "final_shared": run.results["shared"] or {}}
    return {f"{part}/{name}": value for part, figures in parts.items() for name, value in figures.items()}


def table(run: Run) -> str:
    """What `fedpgp show` prints of a run, as Markdown."""
    return formats.markdown(tables.table(Comparison([run])))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
