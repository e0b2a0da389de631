"""Published settings: for each built-in method the values that its authors ran it with, and where each was read."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.errors import ConfigError

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.config import ExperimentConfig

PUBLISHED = "published"  # what `--settings` names, and the origin of a value that was published


@dataclass(frozen=True)
class Setting:
    """One published value.

    section, key: of the config; the section is the method's own, or one that belongs to the task.
    source: the kind and place of the source in a few words, and which value other sources have.
    """

    method: str
    section: str
    key: str
    value: Any
    source: str

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def of_method(self) -> bool:
        """Whether the value belongs to the method and not to the task."""
        return self.section == self.method

    def __str__(self) -> str:
        return f"{self.name} = {shown(self.value)}"


def files() -> dict[str, Path]:
    """Name of a method -> file of its published settings, a part of a config."""
    directory = Path(str(resources.files("fedpgp") / "recipes" / "published"))
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def published_settings(method: str) -> list[Setting]:
    """The published values of a method, none if none was found; raises ConfigError for a method without a file."""
    known = files()
    if method not in known:
        raise ConfigError(
            f'settings must be left out for {method}, whose published settings fedpgp does not have, got "{PUBLISHED}";'
            f" it has those of: {', '.join(known)}"
        )
    text = known[method].read_text(encoding="utf-8")
    sources: dict[tuple[str, str], str] = {}
    section = ""
    for line in text.splitlines():
        if header := re.match(r"\[(.+)\]", line):
            section = header[1]
        elif value := re.match(r"(\w+) = .+? # (.+)", line):
            sources[section, value[1]] = value[2]
    return [
        Setting(method, section, key, value, sources[section, key])
        for section, keys in tomllib.loads(text).items()
        for key, value in keys.items()
    ]


def shown(value: Any) -> str:
    """A value as TOML has it."""
    return json.dumps(value, ensure_ascii=False)


def unused(config: "ExperimentConfig", methods: Sequence[str]) -> Iterator[tuple[Setting, Any]]:
    """The published values of some methods that are not those of a config, each with the value of the config."""
    for setting in (setting for method in methods for setting in published_settings(method)):
        if config.origins.get(setting.name) != PUBLISHED and setting.value != (here := _value(config, setting)):
            yield setting, here


def _value(config: "ExperimentConfig", setting: Setting) -> Any:
    sections: Mapping[str, Any] = {**vars(config), **config.aggregators, **config.methods}
    value = getattr(sections[setting.section], setting.key)
    return list(value) if isinstance(value, tuple) else value


def with_unused(config: "ExperimentConfig", methods: Sequence[str]) -> "ExperimentConfig":
    """The config with origins that also name the published values which it does not have."""
    origins = dict(config.origins)
    for setting, _ in unused(config, methods):
        origin = origins.get(setting.name, "default")
        origins[setting.name] = f"{origin}; {PUBLISHED} for {setting.method}: {shown(setting.value)}"
    return replace(config, origins=origins)


def descriptions(config: "ExperimentConfig", methods: Sequence[str]) -> list[str]:
    """For each method, in several lines, the published values that a config has, and those that it does not have."""
    texts = []
    for method in methods:
        used = [one for one in published_settings(method) if config.origins.get(one.name) == PUBLISHED]
        others = [f"{setting} (here {shown(here)})" for setting, here in unused(config, [method])]
        text = f"published settings of {method}: " + ("" if used else "none")
        lines = [f"  {setting}  # {setting.source}" for setting in used]
        lines += ["  not used: " + ", ".join(others)] if others else []
        texts.append("\n".join([text.rstrip(), *lines]))
    return texts


def fitted(
    config: "ExperimentConfig", methods: Sequence[str], backbone: "Backbone"
) -> tuple["ExperimentConfig", list[str]]:
    """A config whose published depths are at most the layers of the towers that the method changes.

    Returns it with a sentence for each value that was reduced. Values of other origin are left to the checks.
    """
    towers = {
        "deep text": ("text", len(backbone.text.layers)),
        "image tower": ("image", backbone.image.layers),
    }
    changed, origins, told = dict(config.methods), dict(config.origins), []
    for name in methods:
        if origins.get(where := f"{name}.depth") != PUBLISHED:
            continue
        method: Any = config.methods[name]
        tower, layers = min((towers[what] for what in method.reads if what in towers), key=lambda one: one[1])
        if method.depth > layers:
            reason = f"the checkpoint's {tower} tower has {layers} layers"
            changed[name] = replace(method, depth=layers)
            origins[where] = f"{PUBLISHED}: {method.depth}; {reason}"
            told.append(f"{where} is {layers} and not {method.depth}, the published value: {reason}")
    return replace(config, methods=changed, origins=origins), told
