"""The figures and settings of a run for trackers, as names and plain values."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.report import tables
from fedpgp.results import formats
from fedpgp.results.run import Comparison, Run

GROUPS = ("loss", "cosine", "bytes", "seconds", "validation", "wire")  # prefixes of names in a record

SECTIONS = ("task", "federation", "backbone", "privacy")  # sections of the config, in addition to the method's


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a round's record: accuracies in percent, losses, cosines, bytes and seconds.

    The names are as in rounds.jsonl, with these changes: "loss_task" becomes "loss/task", the shared model's Local
    becomes "shared/local", and "participants" becomes the number of participants.
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
    """Return the settings of a run as "section.key" -> value: the method's section, `SECTIONS`, and data.source.

    Unset values are left out. Lists become text.
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
    """Return the figures after the last round, in percent.

    "final/METRIC" is a figure of the clients' own models, "final_shared/METRIC" a figure of the shared model.
    """
    parts = {"final": run.results["final"], "final_shared": run.results["shared"] or {}}
    return {f"{part}/{name}": value for part, figures in parts.items() for name, value in figures.items()}


def table(run: Run) -> str:
    """Return the table of `fedpgp show` for a run, as Markdown."""
    return formats.markdown(tables.table(Comparison([run])))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
