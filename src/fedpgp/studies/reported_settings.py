"""Comparison of the settings of a cell with the settings that a source states for a published figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpgp.aggregators import AGGREGATORS
from fedpgp.config import SECTIONS, ExperimentConfig
from fedpgp.errors import ConfigError, nearest
from fedpgp.federation.optimization import effective
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import METHODS
from fedpgp.runtime.validation import value_error

WITHOUT_EFFECT = frozenset(
    {
        "data.root",
        "backbone.device",
        "federation.engine",
        "federation.deadline",
        "federation.eval_every",
        "federation.path_points",
    }
)  # where and how a run is executed, and what is reported before the last round; a missed deadline changes figures, too
NAMED = frozenset({"data.source", "backbone.checkpoint"})  # only the last part of a path or hub id is compared
INEXPRESSIBLE = "not_expressible"


@dataclass(frozen=True)
class Inexpressible:
    """A published value, in words, that the field of fedpgp cannot have. No value of the field is equal to it."""

    words: str


@dataclass(frozen=True)
class Agreement:
    """Comparison of the settings of a cell with the settings that a source states.

    Attributes
    ----------
    differs
        Mapping of "section.key" -> our value and the published value, as text.
    unknown
        Keys that the source does not state.
    not_expressible
        Published settings that have no key in fedpgp.
    """

    differs: Mapping[str, tuple[str, str]]
    unknown: Sequence[str]
    not_expressible: Sequence[str]

    @property
    def is_same(self) -> bool:
        """Whether the cell has all settings that the source states."""
        return not self.differs and not self.not_expressible


def stated_settings(tables: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, Any]:
    """Return the values of a table with sections of a config by "section.key", checked as values of a config.

    A value that the field cannot have is a table {not_expressible = "in words"}.

    Parameters
    ----------
    tables
        Mapping of section -> key -> value.
    place
        Place of the table, for messages.

    Raises
    ------
    ConfigError
        If a section or a key is unknown, or a value is not allowed.
    """
    models: Mapping[str, type] = {**SECTIONS, **AGGREGATORS, **METHODS}
    stated: dict[str, Any] = {}
    for section, values in tables.items():
        if section not in models:
            raise ConfigError(
                f"there is no section {section!r}", where=place, got=section, remedy=nearest(section, models)
            )
        keys = [field.name for field in fields(models[section])]
        for key, value in values.items():
            where = f"{place}.{section}.{key}"
            if key not in keys:
                raise ConfigError(
                    f"there is no key {key!r} in [{section}]", where=where, got=key, remedy=nearest(key, keys)
                )
            if isinstance(value, Mapping) and list(value) == [INEXPRESSIBLE]:
                stated[f"{section}.{key}"] = Inexpressible(value[INEXPRESSIBLE])
                continue
            try:
                stated[f"{section}.{key}"] = getattr(models[section](**{key: value}), key)
            except ValidationError as error:
                remedy = 'Correct it, or describe it with {not_expressible = "in words"}'
                raise value_error(error.errors()[0], where, remedy) from error
    return stated


def compare_settings(
    config: ExperimentConfig, method: str, stated: Mapping[str, Any], not_expressible: Sequence[str]
) -> Agreement:
    """Compare every setting of a method that can change a figure with the settings that a source states.

    Parameters
    ----------
    config
        Config of the cell.
    method
        Name of the method.
    stated
        Result of `stated_settings`; sections of other methods are ignored.
    not_expressible
        Published settings that have no key in fedpgp.
    """
    sections: dict[str, Any] = {
        **{name: getattr(config, name) for name in SECTIONS},
        config.federation.aggregator: config.aggregator,
        method: config.methods[method],
    }
    ours = _effective(
        {f"{name}.{key}": value for name, section in sections.items() for key, value in asdict(section).items()}, method
    )
    theirs = _effective(
        {key: value for key, value in stated.items() if key.partition(".")[0] not in METHODS.keys() - {method}}, method
    )
    return Agreement(
        {
            key: (_text(ours[key]) if key in ours else "not used", _text(value))
            for key, value in theirs.items()
            if key not in ours or ours[key] != value
        },
        [key for key in ours if key not in theirs],
        not_expressible,
    )


def _effective(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the values that can change a figure; values of the method's section override [federation]."""
    sections: dict[str, dict[str, Any]] = {}
    for place, value in values.items():
        if place not in WITHOUT_EFFECT:
            section, _, key = place.partition(".")
            is_named = place in NAMED and isinstance(value, str)
            sections.setdefault(section, {})[key] = Path(value).name if is_named else value
    counting = effective(sections.get(method, {}), sections.get("federation", {}))
    of_federation = {field.name for field in fields(FederationConfig)}
    sections["federation"] = {key: value for key, value in counting.items() if key in of_federation}
    sections[method] = {key: value for key, value in counting.items() if key not in of_federation}
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def _text(value: Any) -> str:
    match value:
        case Inexpressible():
            return value.words
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_text, value))}]"
        case "":
            return '""'
        case _:
            return str(value)
