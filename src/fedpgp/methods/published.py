"""Published settings: for each built-in method the values that its authors ran it with, and where each was read."""

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fedpgp.errors import ConfigError

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


@cache
def published_settings(method: str) -> tuple[Setting, ...]:
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
    return tuple(
        Setting(method, section, key, value, sources[section, key])
        for section, keys in tomllib.loads(text).items()
        for key, value in keys.items()
    )


def shown(value: Any) -> str:
    """A value as TOML has it."""
    return json.dumps(value, ensure_ascii=False)
