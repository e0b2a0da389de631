"""What a run was begun with, and whether that is still what is there when it is resumed."""

import tomllib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.data.sources import Source
from fedpgp.errors import OutputError
from fedpgp.federation.state import FILE, State
from fedpgp.methods import Method
from fedpgp.results.summary import provenance
from fedpgp.runtime.files import write


def origin(
    config: ExperimentConfig, method: str, seed: int, backbone: Backbone, source: Source | None
) -> dict[str, Any]:
    """What a run is: all that must be the same when it is resumed, and where it came from."""
    return {
        "run": uuid.uuid4().hex,
        "method": method,
        "seed": seed,
        "config": config.to_toml(),
        "provenance": provenance(config, method, seed, backbone, source),
    }


def begin(directory: Path, begun: Mapping[str, Any]) -> None:
    """Makes an empty directory that of a run before its first round."""
    write(directory / "config.toml", begun["config"].encode())
    State.create(directory / FILE, begun).close()


def started_config(directories: Sequence[Path], methods: Sequence[Method] = ()) -> ExperimentConfig:
    """The config of unfinished runs. methods: somebody's own, as they were given when the runs were begun.

    Raises OutputError where a config.toml is not what its run was begun with, or where two runs have different ones.
    """
    configs = []
    for directory in directories:
        file = directory / "config.toml"
        configs.append(load_config(file, methods=[type(method) for method in methods]))
        with State.open(directory / FILE) as state:
            begun = _flat(state.origin()["config"])
        now = _flat(file.read_text(encoding="utf-8"))
        for key in sorted(begun.keys() | now.keys()):
            if begun.get(key) != now.get(key):
                raise OutputError(
                    f"{file}: {key} is {now.get(key, 'not set')}, the run was begun with"
                    f" {begun.get(key, 'no value')}: set it back, or start another run"
                )
    return _only(configs, directories)


def finished_config(directories: Sequence[Path], methods: Sequence[Method] = ()) -> ExperimentConfig:
    """Return the config of finished runs; arguments and errors are those of `started_config`."""
    kinds = [type(method) for method in methods]
    return _only([load_config(directory / "config.toml", methods=kinds) for directory in directories], directories)


def _only(configs: Sequence[ExperimentConfig], directories: Sequence[Path]) -> ExperimentConfig:
    for config, directory in zip(configs, directories, strict=True):
        if config != configs[0]:
            raise OutputError(
                f"the run was begun with another config than {directories[0]}",
                where=f"{directory}",
                remedy="Resume each of them separately",
            )
    return configs[0]


def _flat(toml: str) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in tomllib.loads(toml).items() for key, value in keys.items()}


def check_origin(directory: Path, state: State, here: Mapping[str, Any], notice: Callable[[str], None]) -> None:
    """Raises OutputError where method, seed, checkpoint or images are not those that the run was begun with.

    Another version of fedpgp or of PyTorch is told to `notice` and noted in the run's provenance.
    """
    kept = state.origin()
    begun, now = kept["provenance"], here["provenance"]
    for what in ("method", "seed"):
        if kept[what] != here[what]:
            raise OutputError(
                f"{directory} was begun with {what} {kept[what]!r} and stands in the place of {what} {here[what]!r}:"
                " move it back, or resume it by itself"
            )
    for what, field in (("checkpoint", "backbone.checkpoint"), ("images", "data.source")):
        if begun[what] != now[what]:
            raise OutputError(
                f"{directory} was begun with other {what} than what {field} names now (their fingerprints differ):"
                " restore the files, or start another run"
            )
    if begun["method_code"] != now["method_code"]:
        raise OutputError(
            f"{directory} was begun with other code of the method {kept['method']!r}: restore its file, or start"
            " another run"
        )
    versions = {
        "fedpgp": (begun["fedpgp"], now["fedpgp"]),
        "torch": (begun["packages"]["torch"], now["packages"]["torch"]),
    }
    changed = {package: version for package, version in versions.items() if version[0] != version[1]}
    for package, (before, after) in changed.items():
        notice(f"{directory} was begun with {package} {before}, here is {after}: the rest may differ in the last bits")
    if changed:
        session = {key: now[key] for key in ("command", "fedpgp", "packages", "started")}
        state.keep_origin({**kept, "provenance": {**begun, "resumed": [*begun.get("resumed", []), session]}})
