"""Write docs/fidelity.md: how faithful every method is to its public source in each aspect.

    python tools/build_fidelity.py

The rows about the optimizer, the schedule, the initial context and other defaults are computed: the published settings
of src/fedpgp/recipes/published are compared with the defaults of each method. Other rows are in fidelity.toml.
"""

import dataclasses
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedpgp.federation.optimization import LocalTraining
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import METHODS, Method
from fedpgp.methods.base import TrainedMethod
from fedpgp.methods.published import published_settings, shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fidelity.md"
WRITTEN = Path(__file__).with_name("fidelity.toml")
STATUSES = {
    "exact": "exact",
    "documented difference": "difference",
    "not found": "not found",
}  # with short forms
ASPECTS = ("shared", "private", "loss", "init", "prediction", "optimizer", "schedule", "defaults")
BY_HAND = ASPECTS[:5]
OF_OPTIMIZER = ("optimizer", "learning_rate", "momentum", "weight_decay")  # settings of every method that trains
OF_SCHEDULE = ("schedule", "private_schedule", "schedule_over", "warmup", "warmup_rate", "step_every", "step_factor")
OF_INIT = ("ctx_init", "noise")
NONE = "–"  # sign for a part that a method does not have


class Row(NamedTuple):
    """One row of the table of a method."""

    aspect: str
    status: str
    source: str
    differs: str = ""


def read_written() -> dict[str, Any]:
    """Return the content of fidelity.toml: the text before the tables, and the hand-written rows of each method."""
    return tomllib.loads(WRITTEN.read_text(encoding="utf-8"))


def default(method: Method, key: str) -> Any:
    """Return the default of a setting as in TOML; if the method has none, the default of [federation]."""
    training = vars(LocalTraining.of(method, FederationConfig()))
    group = "private" if key.startswith(("private_", "gate_")) else "shared"
    name = key.removeprefix("private_").removeprefix("gate_")
    groups = training.get(f"{name}s")  # such as learning_rates
    value = groups[group] if groups else training.get(name, getattr(method, key, None))
    return list(value) if isinstance(value, tuple) else value


def computed(method: Method, aspect: str, expected: tuple[str, ...], effective: dict[str, Any]) -> Row:
    """Return the row that compares one aspect with the defaults; `expected` are settings that a source should state."""
    every = [one for one in published_settings(method.name) if one.of_method and not one.source.startswith("ours")]
    found = [one for one in every if aspect_of(one.key) == aspect]
    missing = [key for key in expected if key not in {one.key for one in found}]
    pairs = [(one, effective.get(one.key, default(method, one.key))) for one in found]
    notes = [
        f"`{one.key}`: published {shown(one.value)}, default {'unset' if here is None else shown(here)}"
        for one, here in pairs
        if here != one.value
    ]
    status = "not found" if not found else "documented difference" if notes else "exact"
    if found and missing:
        notes.append("no value in the recipe: " + ", ".join(f"`{key}`" for key in missing))
    sources = dict.fromkeys(one.source.partition("; ")[0].replace("*", r"\*") for one in found)
    shortest = [one for one in sources if not any(one != other and one.startswith(other) for other in sources)]
    return Row(aspect, status, "; ".join(shortest) or "no published value was found", "; ".join(notes))


def aspect_of(key: str) -> str:
    """Return the aspect to which a setting of a method belongs."""
    if key in OF_SCHEDULE:
        return "schedule"
    optimizer = {"betas", "eps", "private_weight_decay", "private_learning_rate", "gate_learning_rate", *OF_OPTIMIZER}
    return "optimizer" if key in optimizer else "init" if key in OF_INIT else "defaults"


def rows(method: Method, written: dict[str, Any]) -> Iterator[Row]:
    """Return the table of a method, without the parts that it does not have."""
    effective = written.get("effective", {})
    fields = [field.name for field in dataclasses.fields(method) if getattr(method, field.name) is not None]
    for aspect in BY_HAND:
        if written[aspect] != NONE:
            yield Row(aspect, **written[aspect])
        if aspect == "init" and (start := tuple(key for key in fields if aspect_of(key) == "init")):
            yield computed(method, "init", start, effective)._replace(aspect="init, default")
    if isinstance(method, TrainedMethod):
        sgd = default(method, "optimizer") == "sgd"
        expected = tuple(key for key in OF_OPTIMIZER if sgd or key != "momentum")
        yield computed(method, "optimizer", expected, effective)
        yield computed(method, "schedule", ("schedule",), effective)
    yield computed(method, "defaults", tuple(key for key in fields if aspect_of(key) == "defaults"), effective)


def word(table: list[Row], aspect: str) -> str:
    """Return the cell of the overview: "difference" if a row has one, else "not found", else "exact"."""
    found = {row.status for row in table if row.aspect.partition(",")[0] == aspect}
    worst = next((one for one in ("documented difference", "not found", "exact") if one in found), None)
    return NONE if worst is None else STATUSES[worst]


def page() -> str:
    """Return the text of docs/fidelity.md."""
    written = read_written()
    tables = {name: list(rows(method(), written[name])) for name, method in METHODS.items()}
    words = {name: [word(table, aspect) for aspect in ASPECTS] for name, table in tables.items()}
    lines = [f"| method | {' | '.join(ASPECTS)} |", "| --- |" + " --- |" * len(ASPECTS)]
    lines += [f"| [`{name}`](#{name}) | {' | '.join(cells)} |" for name, cells in words.items()]
    every = [cell for cells in words.values() for cell in cells]
    counts = ", ".join(f"{every.count(short)} {short}" for short in STATUSES.values())
    lines += [
        "",
        f"There are {len(every)} cells: {counts}, and {every.count(NONE)} for parts that a method does not have.",
    ]
    for name, table in tables.items():
        module = METHODS[name].__module__.rpartition(".")[2]
        lines += ["", f"## `{name}`", ""]
        lines += [f"Source: {METHODS[name].source}. [Published settings](published-settings.md#{name})."]
        lines += [f"Code: `src/fedpgp/methods/{module}.py`. Transcription: `tests/oracle/{module}.py`.", ""]
        lines += ["| aspect | status | source | what differs |", "| --- | --- | --- | --- |"]
        lines += [f"| {row.aspect} | {STATUSES[row.status]} | {row.source} | {row.differs} |" for row in table]
    return written["text"] + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
