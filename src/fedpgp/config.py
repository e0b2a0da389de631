"""An experiment as data: sections of fields with a default each, read from TOML and written back to it."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedpgp.aggregators import AGGREGATORS, Aggregator
from fedpgp.backbone.files import PHOTOCLIP
from fedpgp.backbone.settings import BackboneConfig
from fedpgp.data.settings import DataConfig, TaskConfig
from fedpgp.errors import ConfigError, nearest
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.methods import METHODS, Method, reserved
from fedpgp.methods.base import TrainedMethod
from fedpgp.methods.plugins import find_method, installed
from fedpgp.methods.published import PUBLISHED, Setting
from fedpgp.runtime.files import exists

EMBEDDED, PHOTOGRAPHS = "pictograms", "photographs"  # recipes of the embedded checkpoints
SUGGESTED = 3  # of the sections that have a key, in a message
EMBEDDED_ORIGIN = "the embedded recipe"  # of a value that is neither a default nor asked for
SECTIONS: dict[str, type] = dict(
    zip(reserved.SECTIONS, (DataConfig, TaskConfig, BackboneConfig, FederationConfig, PrivacyConfig), strict=True)
)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides the numbers of an experiment, but for method and seed.

    The defaults are the paper's, for real CLIP weights. methods, aggregators: one section for each that is known, and
    for those of others that are named. origins: "section.key" -> where a value that is no default was set.
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
        """The effective configuration with, behind each value, what it is and where it was set.

        What a method leaves to [federation], such as its optimizer, stands there alone.
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
        """The one that is chosen; raises ConfigError for one that is unknown."""
        name = self.federation.aggregator
        if name not in self.aggregators:
            raise ConfigError(
                f"federation.aggregator must be a known one, got {name!r}; {nearest(name, self.aggregators)}"
            )
        return self.aggregators[name]


def recipes() -> dict[str, Path]:
    """Name -> file of the experiments that ship with the package; the first is the embedded benchmark."""
    directory = Path(str(resources.files("fedpgp") / "recipes"))
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def embedded_recipe() -> Path:
    """The file of the embedded benchmark's recipe."""
    return recipes()[EMBEDDED]


def default_recipe(changes: Sequence[str]) -> str:
    """The recipe of an experiment that names none: the settings that were tuned with its embedded checkpoint."""
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
    """The experiment that a TOML file describes, with changes of the form "section.key=value" on top.

    file: a path, or the name of a recipe that ships with the package; None takes `default_recipe`. What a file leaves
    out has its default, or the value of the recipe that its first line `extends = "NAME"` names.
    methods: further ones beside ours and those of installed packages.
    foreign: leave out the sections of methods that are neither ours nor among `methods`: to read results no code of
    somebody else is needed.
    published: values on top of those of the file, and below the changes.
    Raises ConfigError with one line per fault: file and line, field, what is allowed, what was found.
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

    faults: list[str] = []
    built: dict[str, Any] = {}
    ours = METHODS | {method.name: method for method in methods}
    sections: dict[str, type] = {**SECTIONS, **AGGREGATORS, **ours}
    for name, keys in values.items():
        model = sections.get(name)
        if model is None and not foreign and name in installed():
            model = ours[name] = find_method(name)
        if model is not None:
            try:
                built[name] = model(**keys)
            except ValidationError as error:
                faults += [_fault(name, model, detail, places, path) for detail in error.errors()]
        elif not foreign:
            known = nearest(name, [*sections, *installed()])
            faults.append(f"{places.get(name, path)}: [{name}] must be a known section; {known}")
    if faults:
        raise ConfigError("\n".join(faults))
    return ExperimentConfig(
        **{name: built[name] for name in SECTIONS if name in built},
        methods=_with_defaults(built, ours),
        aggregators=_with_defaults(built, AGGREGATORS),
        origins=origins,
    )


def _with_defaults(built: Mapping[str, Any], classes: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Name -> section: what a config has, or the defaults."""
    return {name: built.get(name) or cls() for name, cls in classes.items()}


@dataclasses.dataclass(frozen=True)
class _File:
    """values: its sections; places: "file:line" of every section and "section.key"; extends: another recipe's name."""

    path: Path
    values: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]
    extends: str | None


def _found(file: Path | str) -> Path:
    """A path as it is, unless there is no such file and it is the name of a recipe."""
    return Path(file) if exists(file) and Path(file).is_file() else recipes().get(str(file), Path(file))


def _chain(path: Path) -> list[_File]:
    """A file after all that it extends, so that its values come last."""
    chain = [_read(path)]
    while (name := chain[0].extends) is not None:
        known = recipes()
        place = f"{chain[0].places[reserved.EXTENDS]}: {reserved.EXTENDS}"
        if name not in known:
            raise ConfigError(f"{place} must be the name of a recipe, got {name!r}; {nearest(str(name), known)}")
        if any(known[name] == file.path for file in chain):
            raise ConfigError(f"{place} {name!r} leads back to itself")
        chain.insert(0, _read(known[name]))
    return chain


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as error:
        remedy = f"name a file that exists, or a recipe: {', '.join(recipes())}"
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}; {remedy}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
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
        place = places.get(loose[0], f"{path}:1")
        raise ConfigError(f"{place}: {loose[0]} must stand in a section such as [federation]")
    return _File(path, tables, places, extends)


def parse_change(change: str) -> tuple[str, str, Any]:
    """Section, key and value of "section.key=value"; raises ConfigError for another form."""
    where, separator, value = change.partition("=")
    name, dot, key = where.strip().partition(".")
    if not (separator and dot and name and key):
        having = [] if dot or not separator else sections_with(name)
        example = " or ".join(f"{section}.{change.strip()}" for section in having[:SUGGESTED]) or "fedpgp.mu=0.5"
        example += f" ({len(having) - SUGGESTED} more sections have that key)" if len(having) > SUGGESTED else ""
        raise ConfigError(f"--set must have the form section.key=value, such as {example}, got {change!r}")
    try:
        (parsed,) = tomllib.loads(f"value = {value}").values()
        return name, key, parsed
    except ValueError:  # no TOML, or more than one value
        return name, key, value.strip()  # a word needs no quotes


def sections_with(key: str) -> list[str]:
    """The sections of ours that have a key: first those that every run reads, then FedPGP's."""
    sections: dict[str, type] = {**SECTIONS, "fedpgp": METHODS["fedpgp"], **METHODS, **AGGREGATORS}
    return [name for name, model in sections.items() if key in {f.name for f in dataclasses.fields(model) if f.init}]


def _fault(name: str, model: type, detail: Any, places: Mapping[str, str], path: Path) -> str:
    """One line for one of pydantic's findings."""
    key = str(detail["loc"][0]) if detail["loc"] else ""
    where = f"{places.get(f'{name}.{key}') or places.get(name) or path}: {name}.{key}"
    known = [f.name for f in dataclasses.fields(model)]
    if key not in known:
        remedy = nearest(key, known) if known else "the section has no keys"
        return f"{where} is not a key of [{name}]; {remedy}"
    return f"{where} {reason(detail)}"


def reason(detail: Any) -> str:
    """One of pydantic's findings in our words: what a value must be, and what it is."""
    message = re.sub(r"^(Input|String) should", "must", detail["msg"]).replace("a valid ", "a ")
    return f"{message.replace('a integer', 'an integer')}, got {detail['input']!r}"


def _section_toml(name: str, section: Any, origins: Mapping[str, str]) -> str:
    summary = (type(section).__doc__ or "").strip().splitlines()[:1]  # a method of somebody's own may have none
    lines = [*(f"# {line}" for line in summary), f"[{name}]"]
    for key, field in section.__pydantic_fields__.items():
        value = getattr(section, key)
        if value is None and isinstance(section, TrainedMethod) and key in TrainedMethod.__dataclass_fields__:
            continue  # that of [federation]
        origin = origins.get(f"{name}.{key}", "default")
        shown = tomli_w.dumps({key: value}).strip() if value is not None else f"# {key} ="
        lines.append(f"{shown}  # " + " ".join(filter(None, (field.description, f"[{origin}]"))))
    return "\n".join(lines) + "\n"
