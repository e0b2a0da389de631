"""Provenance of a run, and the check that a resumed run still has the same inputs."""

import tomllib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig
from fedpgp.data.sources import Source
from fedpgp.errors import OutputError, first_line
from fedpgp.federation.state import FILE, State
from fedpgp.methods import Method
from fedpgp.results.read import CONFIG, open_state, read_config
from fedpgp.results.summary import provenance
from fedpgp.runtime.files import write
from fedpgp.runtime.untrusted import read_text


def origin(
    config: ExperimentConfig, method: str, seed: int, backbone: Backbone, source: Source | None
) -> dict[str, Any]:
    """Return what must be the same when a run is resumed, and the provenance of the run."""
    return {
        "run": uuid.uuid4().hex,
        "method": method,
        "seed": seed,
        "config": config.to_toml(),
        "provenance": provenance(config, method, seed, backbone, source),
    }


def begin(directory: Path, begun: Mapping[str, Any]) -> None:
    """Write the files of a run before its first round into an empty directory."""
    write(directory / CONFIG, begun["config"].encode())
    State.create(directory / FILE, begun).close()


def started_config(directories: Sequence[Path], methods: Sequence[Method] = ()) -> ExperimentConfig:
    """Return the config of unfinished runs.

    Parameters
    ----------
    directories
        The run directories.
    methods
        The user's own methods, as given when the runs were begun.

    Raises
    ------
    OutputError
        A config.toml was changed after its run was begun, or two runs have different configs.
    """
    configs = []
    for directory in directories:
        file = directory / CONFIG
        configs.append(_config(directory, methods))
        with open_state(directory) as state:
            begun = _flat(state.origin()["config"], f"{directory / FILE}, origin: config")
        now = _flat(read_text(file), f"{file}")
        for key in sorted(begun.keys() | now.keys()):
            if begun.get(key) != now.get(key):
                raise OutputError(
                    where=f"{file}: {key}",
                    allowed=f"{begun[key]!r}, as when the run was begun" if key in begun else "left out",
                    got=now.get(key, ...),
                    remedy="Restore the value, or start another run",
                )
    return _only(configs, directories)


def finished_config(directories: Sequence[Path], methods: Sequence[Method] = ()) -> ExperimentConfig:
    """Return the config of finished runs, with the arguments and errors of `started_config`."""
    return _only([_config(directory, methods) for directory in directories], directories)


def _config(directory: Path, methods: Sequence[Method]) -> ExperimentConfig:
    try:
        return read_config(directory, [type(method) for method in methods], foreign=False)
    except FileNotFoundError as error:
        raise OutputError("the run has no config.toml", where=f"{directory}", remedy="Start the run again") from error


def _only(configs: Sequence[ExperimentConfig], directories: Sequence[Path]) -> ExperimentConfig:
    for config, directory in zip(configs, directories, strict=True):
        if config != configs[0]:
            raise OutputError(
                f"the run was begun with another config than {directories[0]}",
                where=f"{directory}",
                remedy="Resume each of them separately",
            )
    return configs[0]


def _flat(toml: str, where: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(toml)
    except (ValueError, RecursionError) as error:
        raise OutputError(
            f"it is not valid TOML ({first_line(error)})", where=where, remedy="Start the run again"
        ) from error
    sections = {name: table for name, table in tables.items() if isinstance(table, dict)}
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def check_origin(directory: Path, state: State, here: Mapping[str, Any], notice: Callable[[str], None]) -> None:
    """Check that method, seed, checkpoint and images are the same as when the run was begun.

    If fedpgp or PyTorch has another version now, `notice` is called, and the run's provenance records it.

    Parameters
    ----------
    directory
        The run directory.
    state
        State of the run.
    here
        `origin` of the run as it would begin now.
    notice
        Called with a sentence for the user.

    Raises
    ------
    OutputError
        Something is not the same.
    """
    kept = state.origin()
    begun, now = kept["provenance"], here["provenance"]
    for what in ("method", "seed"):
        if kept[what] != here[what]:
            raise OutputError(
                f"the run was begun with {what} {kept[what]!r}, but it is in the directory of {what} {here[what]!r}",
                where=f"{directory}",
                remedy="Move it back, or resume it separately",
            )
    for what, field in (("checkpoint", "backbone.checkpoint"), ("images", "data.source")):
        if begun[what] != now[what]:
            raise OutputError(
                f"the {what} of {field} changed since the run was begun (their fingerprints differ)",
                where=f"{directory}",
                remedy="Restore the files, or start another run",
            )
    if begun["method_code"] != now["method_code"]:
        raise OutputError(
            f"the code of the method {kept['method']!r} changed since the run was begun",
            where=f"{directory}",
            remedy="Restore the file of the method, or start another run",
        )
    versions = {
        "fedpgp": (begun["fedpgp"], now["fedpgp"]),
        "torch": (begun["packages"]["torch"], now["packages"]["torch"]),
    }
    changed = {package: version for package, version in versions.items() if version[0] != version[1]}
    for package, (before, after) in changed.items():
        notice(
            f"{directory} was begun with {package} {before}, and {after} is installed now. The other rounds may differ"
            " in the last bits."
        )
    if changed:
        session = {key: now[key] for key in ("command", "fedpgp", "packages", "started")}
        state.keep_origin({**kept, "provenance": {**begun, "resumed": [*begun.get("resumed", []), session]}})
