"""The configuration of an experiment: sections of fields with defaults, read from TOML and written to it."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import ValidationError

from fedpgp.aggregators import AGGREGATORS, Aggregator
from fedpgp.backbone.files import PHOTOCLIP
from fedpgp.backbone.settings import BackboneConfig
from fedpgp.data.settings import DataConfig, TaskConfig
from fedpgp.errors import ConfigError, combined, first_line, nearest
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.methods import METHODS, Method, reserved
from fedpgp.methods.base import TrainedMethod
from fedpgp.methods.plugins import find_method, installed
from fedpgp.methods.published import PUBLISHED, Setting
from fedpgp.runtime import limits
from fedpgp.runtime.files import exists
from fedpgp.runtime.validation import value_error

EMBEDDED, PHOTOGRAPHS = "pictograms", "photographs"  # recipes of the embedded checkpoints
SUGGESTED = 3  # sections that a message names if many have the same key
EMBEDDED_ORIGIN = "the embedded recipe"  # origin of a value that the user did not choose
SECTIONS: dict[str, type] = dict(
    zip(reserved.SECTIONS, (DataConfig, TaskConfig, BackboneConfig, FederationConfig, PrivacyConfig), strict=True)
)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Configuration of one experiment: everything that determines its results, except the method and the seed.

    The defaults are the values of the paper, for the weights of OpenAI's CLIP.

    Attributes
    ----------
    data, task, backbone, federation, privacy
        The sections of these names.
    methods
        One section for each method: the built-in ones, and other methods that the file names.
    aggregators
        One section for each aggregator.
    origins
        "section.key" -> where the value was set, for every value that is not a default.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    federation: FederationConfig = dataclasses.field(default_factory=FederationConfig)
    privacy: PrivacyConfig = dataclasses.field(default_factory=PrivacyConfig)
    methods: Mapping[str, Method] = dataclasses.field(default_factory=lambda: _with_defaults({}, METHODS))
    aggregators: Mapping[str, Aggregator] = dataclasses.field(default_factory=lambda: _with_defaults({}, AGGREGATORS))
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def to_toml(self) -> str:
        """Return the effective configuration as TOML, with a description and the origin after each value.

        A value that a method takes from [federation], such as the optimizer, is only in that section.
        """
        sections: dict[str, Any] = {name: getattr(self, name) for name in SECTIONS}
        sections |= {**self.aggregators, **self.methods}
        return "\n".join(
            _section_toml(name, section, self.origins)
            for name, section in sections.items()
            if dataclasses.fields(section)
        )

    @property
    def aggregator(self) -> Aggregator:
        """The aggregator that the config chooses.

        Raises
        ------
        ConfigError
            The name is unknown.
        """
        name = self.federation.aggregator
        if name not in self.aggregators:
            raise ConfigError(
                where="federation.aggregator",
                allowed="the name of an aggregator",
                got=name,
                remedy=nearest(name, self.aggregators),
            )
        return self.aggregators[name]


def recipes() -> dict[str, Path]:
    """Return the recipes of the package: name -> file."""
    directory = Path(str(resources.files("fedpgp") / "recipes"))
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def embedded_recipe() -> Path:
    """Return the file of the embedded benchmark's recipe."""
    return recipes()[EMBEDDED]


def default_recipe(changes: Sequence[str]) -> str:
    """Return the recipe of an experiment without a config file: the one tuned for its embedded checkpoint."""
    named = {(section, key): value for section, key, value in map(parse_change, changes)}
    return PHOTOGRAPHS if named.get(("backbone", "checkpoint")) == PHOTOCLIP else EMBEDDED


def load_config(
    file: Path | str | None = None,
    changes: Sequence[str] | str = (),
    methods: Sequence[type[Method]] = (),
    *,
    foreign: bool = False,
    published: Sequence[Setting] = (),
) -> ExperimentConfig:
    """Return the experiment of a TOML file, with changes of the form "section.key=value".

    Parameters
    ----------
    file
        A path, or the name of a recipe of the package; None takes `default_recipe`. Values that a file leaves out come
        from the recipe in its first line `extends = "NAME"`, or are the defaults.
    changes
        Values that replace the values of the file and the published ones.
    methods
        Further methods, in addition to the built-in ones and the methods of installed packages.
    foreign
        Ignore the sections of methods that are neither built in nor in `methods`. Results can then be read without
        importing any other code.
    published
        Values that replace the values of the file.

    Returns
    -------
    The configuration of the experiment.

    Raises
    ------
    ConfigError
        The file cannot be read, or values are not allowed: one line per value, with its file, line and field.
    """
    changes = [changes] if isinstance(changes, str) else changes
    path = _found(default_recipe(changes) if file is None else file)
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    places: dict[str, str] = {}
    for layer in _chain(path):
        origin = EMBEDDED_ORIGIN if layer.path == embedded_recipe() else layer.path.name
        for name, keys in layer.values.items():
            values.setdefault(name, {}).update(keys)
            origins |= {f"{name}.{key}": origin for key in keys}
        places |= layer.places
    on_top = [(setting.section, setting.key, setting.value, PUBLISHED) for setting in published]
    for name, key, value, origin in [*on_top, *((*parse_change(change), "--set") for change in changes)]:
        values.setdefault(name, {})[key] = value
        origins[f"{name}.{key}"] = places[f"{name}.{key}"] = origin
        places.setdefault(name, origin)

    faults: list[ConfigError] = []
    built: dict[str, Any] = {}
    ours = METHODS | {method.name: method for method in methods}
    sections: dict[str, type] = {**SECTIONS, **AGGREGATORS, **ours}
    for name, keys in values.items():
        model = sections.get(name)
        if model is None and not foreign and name in installed():
            model = ours[name] = find_method(name)
        if model is not None:
            try:
                built[name] = model(**{key: _listed(model, key, value) for key, value in keys.items()})
            except ValidationError as error:
                faults += [_fault(name, model, detail, places, path) for detail in error.errors()]
        elif not foreign:
            remedy = nearest(name, [*sections, *installed()])
            faults.append(
                ConfigError(f"the section [{name}] is unknown", where=f"{places.get(name, path)}", remedy=remedy)
            )
    if faults:
        raise combined(faults)
    return ExperimentConfig(
        **{name: built[name] for name in SECTIONS if name in built},
        methods=_with_defaults(built, ours),
        aggregators=_with_defaults(built, AGGREGATORS),
        origins=origins,
    )


def _listed(model: Any, key: str, value: Any) -> Any:
    """Return a single value as a list if the field holds a list of any length, such as task.held_out."""
    field = model.__pydantic_fields__.get(key)
    of_list = field is not None and get_origin(field.annotation) is tuple and get_args(field.annotation)[-1] is ...
    return [value] if of_list and not isinstance(value, list | tuple) else value


def with_device(config: ExperimentConfig, device: str | None) -> ExperimentConfig:
    """Return the config with another device, or unchanged for None; raise ConfigError if the device is not allowed."""
    if device is None:
        return config
    checked = load_config(changes=[f"backbone.device={json.dumps(device)}"])
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, device=checked.backbone.device))


def _with_defaults(built: Mapping[str, Any], classes: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return name -> section; a section that the config does not have has the default values."""
    return {name: built.get(name) or cls() for name, cls in classes.items()}


@dataclasses.dataclass(frozen=True)
class _File:
    """A config file: sections, "file:line" of every section and "section.key", and the recipe that it extends."""

    path: Path
    values: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]
    extends: str | None


def _found(file: Path | str) -> Path:
    """Return the path of an existing file, or the file of a recipe with that name."""
    return Path(file) if exists(file) and Path(file).is_file() else recipes().get(str(file), Path(file))


def _chain(path: Path) -> list[_File]:
    """Return the recipes that a file extends, and the file itself at the end."""
    chain = [_read(path)]
    while (name := chain[0].extends) is not None:
        known = recipes()
        place = f"{chain[0].places[reserved.EXTENDS]}: {reserved.EXTENDS}"
        if name not in known:
            remedy = nearest(str(name), known)
            raise ConfigError(where=place, allowed="the name of a recipe", got=name, remedy=remedy)
        if any(known[name] == file.path for file in chain):
            raise ConfigError(f"the recipe {name!r} extends itself", where=place, remedy="Extend another recipe")
        chain.insert(0, _read(known[name]))
    return chain


def _read(path: Path) -> _File:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(limits.JSON)
            if file.read(1):
                allowed = f"at most {limits.JSON:,} characters"
                raise ConfigError(where=f"the size of {path}", allowed=allowed, got="more", remedy="Shorten the file")
        tables = tomllib.loads(text)
    except OSError as error:
        remedy = f"Use a file that exists, or a recipe: {', '.join(recipes())}"
        raise ConfigError(
            f"the config file cannot be read: {error.strerror}", where=str(path), remedy=remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the file is not valid TOML: {first_line(error)}",
            where=str(path),
            remedy="Correct the line, or save the file as UTF-8",
        ) from error
    places: dict[str, str] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            name = header[1]
            places[name] = f"{path}:{number}"
        elif key := re.match(r"\s*([\w-]+(?:\.[\w-]+)*)\s*=", line):
            places[f"{name}.{key[1]}" if name else key[1]] = f"{path}:{number}"
    extends = tables.pop(reserved.EXTENDS, None)
    tables.pop(reserved.RECIPE, None)
    loose = [key for key, value in tables.items() if not isinstance(value, dict)]
    if loose:
        having = sections_with(loose[0])
        raise ConfigError(
            f"the key {loose[0]} is not in a section",
            where=places.get(loose[0], f"{path}:1"),
            remedy=f"Write a line with a section, such as [{having[0] if having else 'federation'}], before it",
        )
    return _File(path, tables, places, extends)


def parse_change(change: str) -> tuple[str, str, Any]:
    """Return section, key and value of "section.key=value".

    Raises
    ------
    ConfigError
        The text has another form.
    """
    where, separator, value = change.partition("=")
    name, dot, key = where.strip().partition(".")
    if not (separator and dot and name and key):
        having = [] if dot or not separator else sections_with(name)
        example = " or ".join(f"{section}.{change.strip()}" for section in having[:SUGGESTED]) or "fedpgp.mu=0.5"
        example += f" ({len(having) - SUGGESTED} more sections have that key)" if len(having) > SUGGESTED else ""
        raise ConfigError(
            where="--set",
            allowed="of the form section.key=value",
            got=change,
            remedy=f"Use for example --set {example}",
        )
    try:
        (parsed,) = tomllib.loads(f"value = {value}").values()
        return name, key, parsed
    except ValueError:  # not TOML, or more than one value
        return name, key, value.strip()  # a text may be written without quotes


def sections_with(key: str) -> list[str]:
    """Return the built-in sections that have a key: first the sections that every run reads, then FedPGP."""
    sections: dict[str, type] = {**SECTIONS, "fedpgp": METHODS["fedpgp"], **METHODS, **AGGREGATORS}
    return [name for name, model in sections.items() if key in {f.name for f in dataclasses.fields(model) if f.init}]


def _fault(name: str, model: type, detail: Any, places: Mapping[str, str], path: Path) -> ConfigError:
    """Return the error for one of pydantic's findings."""
    key = str(detail["loc"][0]) if detail["loc"] else ""
    place = places.get(f"{name}.{key}") or places.get(name) or path
    known = [f.name for f in dataclasses.fields(model)]
    if key not in known:
        remedy = nearest(key, known) if known else f"Remove {key}: the section has no keys"
        return ConfigError(f"{name}.{key} is not a key of [{name}]", where=f"{place}", remedy=remedy)
    remedy = f"Change {name}.{key}; `fedpgp config` describes all values"
    return value_error(detail, f"{place}: {name}.{key}", remedy)


def _section_toml(name: str, section: Any, origins: Mapping[str, str]) -> str:
    summary = (type(section).__doc__ or "").strip().splitlines()[:1]  # a user's method may have no docstring
    lines = [*(f"# {line}" for line in summary), f"[{name}]"]
    for key, field in section.__pydantic_fields__.items():
        value = getattr(section, key)
        if value is None and isinstance(section, TrainedMethod) and key in TrainedMethod.__dataclass_fields__:
            continue  # the method uses the value of [federation]
        origin = origins.get(f"{name}.{key}", "default")
        shown = tomli_w.dumps({key: value}).strip() if value is not None else f"# {key} ="
        lines.append(f"{shown}  # " + " ".join(filter(None, (field.description, f"[{origin}]"))))
    return "\n".join(lines) + "\n"
