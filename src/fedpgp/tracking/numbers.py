"""What of a record is a number, and what of a run is a setting."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedpgp.results import Run

SETTINGS = ("task", "federation", "backbone", "privacy")  # sections of the config beside the method's own


def numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a round's record, those of the shared part alone as "shared/NAME"."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "round":
            found[prefix + name] = float(value)
    return found


def settings(run: Run) -> dict[str, Any]:
    """The values of a run's config, by "section.key"."""
    sections = {name: asdict(getattr(run.config, name)) for name in SETTINGS}
    sections[run.method] = dict(run.provenance["method"])
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
