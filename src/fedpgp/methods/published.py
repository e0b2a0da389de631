"""Published settings: the values that the authors of each built-in method used, with the source of each value."""

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fedpgp.errors import ConfigError

PUBLISHED = "published"  # the value of `--settings`, and the origin of a published value in a config


@dataclass(frozen=True)
class Setting:
    """One published value of a method.

    Attributes
    ----------
    method
        Name of the method.
    section
        Section of the config: the method's own, or another one, such as "federation".
    key
        Key in that section.
    value
        The published value.
    source
        Kind and place of the source, and the values in other sources, in a few words.
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
        """Whether the value is in the method's own section of the config."""
        return self.section == self.method

    def __str__(self) -> str:
        return f"{self.name} = {shown(self.value)}"


def files() -> dict[str, Path]:
    """Return the files with published settings, which are parts of a config, by the name of the method."""
    directory = Path(str(resources.files("fedpgp") / "recipes" / "published"))
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


@cache
def published_settings(method: str) -> tuple[Setting, ...]:
    """Return the published values of a method, or an empty tuple if no source was found.

    Raises
    ------
    ConfigError
        There is no file for the method.
    """
    known = files()
    if method not in known:
        raise ConfigError(
            f"there are no published settings of {method}",
            where="settings",
            got=PUBLISHED,
            remedy=f"Run {method} without published settings, or choose one of {', '.join(known)}",
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
    """Return a value as it is written in TOML."""
    return json.dumps(value, ensure_ascii=False)
