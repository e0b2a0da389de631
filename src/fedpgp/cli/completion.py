"""Shell completion of methods, settings, recipes and datasets. The names come from a file, because PyTorch is slow."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from click.shell_completion import split_arg_string

FILE = Path(__file__).parent / "completion.json"  # tools/completion_names.py writes it
WORDS, NUMBER = "COMP_WORDS", "COMP_CWORD"  # variables of bash
BEFORE = "COMP_BEFORE"  # what `join_words` has taken from the word at the cursor


@cache
def known() -> Mapping[str, Any]:
    """Return the names: "methods", "datasets", "experiments" and "recipes" -> list, "settings" -> key -> values."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def of_list(names: str) -> Any:
    """Return a function that completes the last of several names, which are separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [before + comma + name for name in known()[names] if name.startswith(last) and name not in taken]

    return complete


def of_names(names: str) -> Any:
    """Return a function that completes one name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in known()[names] if name.startswith(incomplete)]

    return complete


def of_values(key: str) -> Any:
    """Return a function that completes the value of a setting."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in known()["settings"][key] if value.startswith(incomplete)]

    return complete


def of_settings(incomplete: str) -> list[str]:
    """Complete SECTION.KEY=VALUE: first the section, then the key, then the value.

    A section or key without an alternative comes with what can follow it, because shells add a space to a completion
    that has no alternative.
    """
    before = os.environ.get(BEFORE, "")
    return [each.removeprefix(before) for each in _settings(before + incomplete)]


def _settings(incomplete: str) -> list[str]:
    settings = known()["settings"]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={each}" for each in settings.get(key, ()) if each.startswith(value)]
    keys = [each for each in settings if each.startswith(incomplete)]
    sections = list(dict.fromkeys(each.partition(".")[0] + "." for each in keys))
    if len(sections) > 1:
        return sections
    if len(keys) > 1:
        return [f"{each}=" for each in keys]
    return [f"{each}={value}" for each in keys for value in settings[each] or ("", "…")]


def in_bash() -> bool:
    """Return whether bash has started this process to complete a line."""
    return os.environ.get("_FEDPGP_COMPLETE") == "complete_bash"


def join_words() -> None:
    """Join the words that bash has split at =, such as `task.protocol = glob`. bash replaces only the last of them."""
    words, number = split_arg_string(os.environ[WORDS]), int(os.environ[NUMBER])
    joined: list[str] = []
    for place, word in enumerate(words[: number + 1]):
        if joined and "=" in (word, words[place - 1]):
            joined[-1] += word
        else:
            joined.append(word)
    if number < len(words):
        before, equals, last = joined.pop().rpartition("=")
        os.environ[BEFORE] = before + equals
        joined += [last] * bool(last)
        number = len(joined) - bool(last)
    else:  # the cursor is behind the last word
        number = len(joined)
    os.environ[WORDS], os.environ[NUMBER] = "\n".join(joined), str(number)
