"""The settings that a source states for a published figure, and how those of a cell compare with them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedpgp.aggregators import AGGREGATORS
from fedpgp.config import SECTIONS, ExperimentConfig, reason
from fedpgp.errors import ConfigError, nearest
from fedpgp.federation.optimization import effective
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import METHODS

WITHOUT_EFFECT = frozenset(
    {
        "data.root",
        "backbone.device",
        "federation.engine",
        "federation.deadline",
        "federation.metrics_port",
        "federation.eval_every",
        "federation.path_points",
    }
)  # where and how a run executes, and what it reports besides its last round; a missed deadline changes figures, too
NAMED = frozenset({"data.source", "backbone.checkpoint"})  # the last part of a path or hub id is the identity
INEXPRESSIBLE = "not_expressible"


@dataclass(frozen=True)
class Inexpressible:
    """A published value, in words, that our field cannot have: no value of ours is equal to it."""

    words: str


@dataclass(frozen=True)
class Agreement:
    """How the settings of a cell compare with those that a source states.

    differs: "section.key" -> our value and the published one, as text; unknown: the keys that the source does not
    state; not_expressible: published settings for which fedpgp has no key.
    """

    differs: Mapping[str, tuple[str, str]]
    unknown: Sequence[str]
    not_expressible: Sequence[str]

    @property
    def is_same(self) -> bool:
        """Whether all settings that the source states are those of the cell."""
        return not self.differs and not self.not_expressible


def stated_settings(tables: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, Any]:
    """The values of a table with the sections of a config, by "section.key", each checked as the config's is.

    A value that the field cannot have is a table {not_expressible = "in words"}. place: for messages.
    Raises ConfigError for a section or a key that no config has, and for a value that it cannot have.
    """
    models: Mapping[str, type] = {**SECTIONS, **AGGREGATORS, **METHODS}
    stated: dict[str, Any] = {}
    for section, values in tables.items():
        if section not in models:
            raise ConfigError(f"{place}.{section} must be a section of a config; {nearest(section, models)}")
        keys = [field.name for field in fields(models[section])]
        for key, value in values.items():
            where = f"{place}.{section}.{key}"
            if key not in keys:
                raise ConfigError(f"{where} is not a key of [{section}]; {nearest(key, keys)}")
            if isinstance(value, Mapping) and list(value) == [INEXPRESSIBLE]:
                stated[f"{section}.{key}"] = Inexpressible(value[INEXPRESSIBLE])
                continue
            try:
                stated[f"{section}.{key}"] = getattr(models[section](**{key: value}), key)
            except ValidationError as error:
                raise ConfigError(f"{where} {reason(error.errors()[0])}") from error
    return stated


def compare_settings(
    config: ExperimentConfig, method: str, stated: Mapping[str, Any], not_expressible: Sequence[str]
) -> Agreement:
    """Compare every setting of a method that can change a figure with what a source states.

    stated: of `stated_settings`; sections of other methods are left out.
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
    """The values that can change a figure, where the method's section has overridden those of [federation]."""
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
