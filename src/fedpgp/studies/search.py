"""What is varied: studies, each with settings that have a label and what they change."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from fedpgp.errors import ConfigError, nearest

Study = Mapping[str, Sequence[str]]  # label -> changes of the form "section.key=value"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of a study: a part of a path


def shipped_studies() -> Path:
    """The paper's ablations of FedPGP, and some more."""
    return Path(str(resources.files("fedpgp") / "studies" / "ablations.toml"))


def read_studies(file: Path | str | None = None, wanted: Sequence[str] | None = None) -> dict[str, Study]:
    """The studies of a TOML file, a section for each, or those of them that are wanted; None takes what ships.

    Raises ConfigError, naming the file and the study.
    """
    path = shipped_studies() if file is None else Path(file)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"studies {path} cannot be read: {error.strerror}; name a file that exists") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    check_studies(path, tables)
    if wanted is None:
        return tables
    for name in wanted:
        if name not in tables:
            # Where the shipped ones lie says nothing to whoever asks for one.
            place = "the shipped file of studies" if file is None else path
            raise ConfigError(f"{place} has no study {name!r}; {nearest(name, tables)}")
    return {name: tables[name] for name in dict.fromkeys(wanted)}


def check_studies(path: Path, tables: Mapping[str, object]) -> None:
    """Raises ConfigError where they are no studies. path: where they stand, for the message."""
    if not tables:
        raise ConfigError(f"{path}: holds no study; write a section for one, such as [bottleneck]")
    for name, settings in tables.items():
        _check(path, name, settings)


def _check(path: Path, name: str, settings: object) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{path}: a study's name must be of small letters, digits and hyphens, got {name!r}")
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"{path}: [{name}] must be a section with a setting in each line")
    for label, changes in settings.items():
        if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
            raise ConfigError(
                f'{path}: {name}.{label!r} must be a list of changes such as ["fedpgp.mu=1.0"], got {changes!r}'
            )
