"""An experiment as data: sections of fields with a default each, read from TOML and written back to it."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from fedpgp import reserved
from fedpgp.aggregators import AGGREGATORS, Aggregator
from fedpgp.aggregators.base import STRICT
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.base import Beta, Optimizer, Period, Schedule, TrainedMethod
from fedpgp.plugins import find_method, installed
from fedpgp.published import PUBLISHED, Setting

DEFAULT_AGGREGATOR = "fedavg"
EMBEDDED = "pictograms"
SUGGESTED = 3  # of the sections that have a key, in a message


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where the images come from."""

    source: str = Field(
        default="pictograms",
        description='"pictograms" (embedded), a directory or file, "hf:ORG/NAME", or a known name that lies below root',
    )
    root: str = Field(default="data", description="the directory that holds the data sets with a known name")
    layout: str = Field(default="auto", description="how a directory is to be read; fedpgp data layouts lists them")
    names: str = Field(
        default="", description="a file with a class name in each line, or with an identifier and its name"
    )
    template: str = Field(
        default="", description='hand-written prompt with {} for the class name; "": that of the data set'
    )
    image_column: str = Field(default="", description="of a table; this and the next four: found by its name if unset")
    label_column: str = Field(default="", description="of a table")
    domain_column: str = Field(default="", description="of a table")
    client_column: str = Field(default="", description="of a table: whose image it is")
    split_column: str = Field(default="", description="of a table: train, validation or test")
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="of every class, where the data set has no test split"
    )
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="of every class's training images, where there is no validation split"
    )
    augmented_views: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="views of each training image. 1: the centre crop; K: random crops, half of them flipped, of which"
        " each epoch draws one (authors' code: a new crop in each epoch; CIFAR: neither crop nor flip)",
    )
    token_precision: Literal["full", "float16"] = Field(
        default="full", description="of patch features and states of the image tower on disk; float16 takes half"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """Who has what, and what is tested."""

    protocol: Literal["base-to-novel", "personalization", "leave-one-domain-out", "cross-data-set", "global"] = Field(
        default="base-to-novel",
        description="novel: the second half of the classes, nothing, domains, other data sets, or nothing",
    )
    partition: Literal["classes", "dirichlet", "pachinko", "pathological", "shards", "iid", "natural", "own"] = Field(
        default="classes",
        description="who has which training images; classes: dealt out without overlap (paper); own: deployment alone,"
        " all that a node's data source holds are its client's",
    )
    class_names: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="own: of all clients' images, in one order; base-to-novel: the first half is base"
    )
    clients: int = Field(default=10, ge=1, description="N (paper, base-to-novel); natural: those with the most images")
    new_clients: int = Field(
        default=0, ge=0, description="so many of them join after training: the shared part stays, they fit their own"
    )
    classes_per_client: int | None = Field(
        default=None,
        ge=1,
        description="classes: of each; unset: all dealt out (paper). pathological: of each, with overlap",
    )
    class_division: Literal["even", "authors"] = Field(
        default="even",
        description='with the partition classes; "even": numbers of classes that differ by at most one, drawn by the'
        ' seed; "authors": round(C / N) for each client, the rest for the last one, one draw for all seeds',
    )
    shards_per_client: int = Field(default=2, ge=1, description="shards: sorted by class and cut (McMahan et al.)")
    concentration: float = Field(
        default=0.3, gt=0, le=1e6, description="dirichlet: of each class; pachinko: of superclasses (paper: 0.3)"
    )
    fine_concentration: float = Field(
        default=10.0, gt=0, le=1e6, description="pachinko: of the classes of a superclass (paper: 10)"
    )
    domain_per_client: bool = Field(
        default=False, description="every client has images of one domain alone, dealt out in turn"
    )
    held_out: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="leave-one-domain-out: the domains that nobody trains on; none: the last of the data set",
    )
    targets: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="cross-data-set: what data.source could be, to be tested on; the first is Novel"
    )
    shots: int = Field(default=8, ge=0, description="training images per class (paper: 8 and 16); 0: all")
    evaluate_on: Literal["test", "validation"] = Field(
        default="test",
        description='"validation": the protocol within the base classes on validation images, to choose settings',
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """The frozen CLIP."""

    checkpoint: str = Field(
        default="openai/clip-vit-base-patch16",
        description='"pictoclip" (embedded), a directory, or a hub id (paper: ViT-B/16)',
    )
    precision: Literal["float32", "float64", "bf16"] = Field(
        default="float32", description='"bf16": the text tower\'s products and attention; all else stays in float32'
    )
    device: str = Field(
        default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description='"cpu", "cuda", "cuda:1" or "mps"'
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FederationConfig:
    """Rounds, participation and local training."""

    rounds: int = Field(default=25, ge=1, description="(paper, base-to-novel)")
    local_epochs: int = Field(default=2, ge=1, description="(paper, base-to-novel)")
    participation: float = Field(
        default=1.0, gt=0, le=1, description="share of the clients in a round (paper, base-to-novel)"
    )
    participation_rounding: Literal["nearest", "down"] = Field(
        default="nearest",
        description='how participation * N becomes a number of clients, at least 1: "nearest", or "down", which is'
        " int() as in the authors' code: int(0.29 * 100) is 28",
    )
    everyone_first: bool = Field(default=False, description="all clients take part in round 1 (authors' code: true)")
    independent_private: bool = Field(
        default=False, description="a first U, V of its own for each client (authors' code: false)"
    )
    aggregator: str = Field(
        default=DEFAULT_AGGREGATOR, description=f"of the shared parts: {', '.join(AGGREGATORS)} (paper: fedavg)"
    )
    join_epochs: int = Field(
        default=20, ge=1, description="in which a new client fits its private part, see task.new_clients"
    )
    batch_size: int = Field(
        default=8, ge=1, description="images in a local step; the last may have fewer (paper: = shots)"
    )
    optimizer: Optimizer = Field(
        default="sgd", description='"sgd", "adam" or "adamw"; this and the next ten can also be set for one method'
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd (default of Dassl, which the authors use)")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False, description="of adam and adamw (PyTorch)")
    eps: float = Field(default=1e-8, gt=0, le=1, description="of adam and adamw (PyTorch)")
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=1e3,
        description="added to the gradient, but with adamw apart from it (default of Dassl, which the authors use)",
    )
    schedule: Schedule = Field(
        default="constant", description='"constant" (FedPGP), "cosine" towards 0, or "step": of the learning rates'
    )
    schedule_over: Period = Field(
        default="rounds",
        description="the schedule goes once over all rounds, or over the local epochs or steps of each round",
    )
    warmup: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="length of the warm-up before the schedule, in rounds, epochs or steps",
    )
    warmup_rate: float | None = Field(
        default=None, gt=0, le=1e3, description="learning rate in the warm-up (CoOp: 1e-5); unset: rises linearly"
    )
    step_every: int = Field(
        default=10, ge=1, le=1_000_000, description="step: after so many rounds, epochs or steps the rate falls"
    )
    step_factor: float = Field(default=0.1, gt=0, le=1, description="step: to this share of itself (PyTorch)")
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description='momentum and the like: new in each round, or "keep": a client goes on with its own',
    )
    engine: Literal["local", "simulation", "deployment"] = Field(
        default="local",
        description="this process; Flower's simulation, on Ray; or machines, see fedpgp federate. Figures are the same",
    )
    deadline: float = Field(
        default=600.0, gt=0, le=1e6, description="simulation, deployment: seconds in which clients must have answered"
    )
    largest_change: float = Field(
        default=1e4,
        gt=0,
        le=1e12,
        description="simulation, deployment: updates that change the shared part by more (L2 norm) are dropped (ours)",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="deployment: of the server's loopback address, where Prometheus reads the last round; unset: none",
    )
    eval_every: int = Field(
        default=1, ge=1, description="evaluate after every n-th round; the last always (authors' code: 1)"
    )
    path_points: int = Field(
        default=11,
        ge=1,
        le=1001,
        description="models from the shared part alone to a client's own that are evaluated in the end; 1: that alone",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyConfig:
    """What is hidden of a client's update, through Flower: docs/privacy.md says from whom."""

    differential_privacy: Literal["none", "central", "local"] = Field(
        default="none", description="noise that the server adds to the mean, or each client to its update; of clients"
    )
    clipped_by: Literal["server", "client"] = Field(
        default="server", description="central: who cuts updates to the norm; with secure_aggregation the client"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="central: adaptive follows a quantile of the norms (Andrew et al.)"
    )
    clipping_norm: float = Field(
        default=0.5, gt=0, le=1e6, description="C, largest L2 norm of a client's change; adaptive: the first (ours)"
    )
    noise_multiplier: float = Field(
        default=1.0, ge=0, le=1e6, description="central: z, standard deviation of the noise of the sum over C"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ at which ε is counted")
    local_epsilon: float = Field(
        default=10.0, gt=0, le=1e6, description="local: ε of the update of one round, from which the noise follows"
    )
    target_quantile: float = Field(default=0.5, ge=0, le=1, description="adaptive: of the norms (Andrew et al.)")
    clipping_rate: float = Field(default=0.2, gt=0, le=100, description="adaptive: learning rate (Andrew et al.)")
    count_noise: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="adaptive: standard deviation of the noise of how many were cut; unset: clients / 20",
    )
    secure_aggregation: bool = Field(default=False, description="SecAgg+: the server sees the sum of updates alone")
    shares: float = Field(
        default=1.0, gt=0, le=1, description="secure_aggregation: of the participants that hold a share of each key"
    )
    threshold: float = Field(
        default=0.5, gt=0, le=1, description="secure_aggregation: of the shares without which nothing can be summed"
    )
    value_range: float = Field(
        default=1.0, gt=0, le=1e4, description="secure_aggregation: a number's change is cut to ± this, and quantised"
    )


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
    methods: Mapping[str, Method] = dataclasses.field(
        default_factory=lambda: {name: cls() for name, cls in METHODS.items()}
    )
    aggregators: Mapping[str, Aggregator] = dataclasses.field(
        default_factory=lambda: {name: cls() for name, cls in AGGREGATORS.items()}
    )
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


def load_config(
    file: Path | str | None = None,
    changes: Sequence[str] = (),
    methods: Sequence[type[Method]] = (),
    *,
    foreign: bool = False,
    published: Sequence[Setting] = (),
) -> ExperimentConfig:
    """The experiment that a TOML file describes, with changes of the form "section.key=value" on top.

    file: a path, or the name of a recipe that ships with the package; None takes that of the embedded benchmark. What a
    file leaves out has its default, or the value of the recipe that its first line `extends = "NAME"` names.
    methods: further ones beside ours and those of installed packages.
    foreign: leave out the sections of methods that are neither ours nor among `methods`: to read results no code of
    somebody else is needed.
    published: values on top of those of the file, and below the changes.
    Raises ConfigError with one line per fault: file and line, field, what is allowed, what was found.
    """
    path = _found(EMBEDDED if file is None else file)
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    places: dict[str, str] = {}
    for one in _chain(path):
        origin = EMBEDDED_ORIGIN if one.path == embedded_recipe() else one.path.name
        for name, keys in one.values.items():
            values[name] = {**values.get(name, {}), **keys}
            origins |= {f"{name}.{key}": origin for key in keys}
        places |= {name: f"{one.path}:{line}" for name, line in one.lines.items()}
    on_top = [(setting.section, setting.key, setting.value, PUBLISHED) for setting in published]
    for name, key, value, origin in [*on_top, *((*parse_change(change), "--set") for change in changes)]:
        values.setdefault(name, {})[key] = value
        origins[f"{name}.{key}"] = origin
        places[f"{name}.{key}"] = origin
        places.setdefault(name, origin)

    faults: list[str] = []
    built: dict[str, Any] = {}
    ours = METHODS | {method.name: method for method in methods}
    sections: dict[str, type] = {**SECTIONS, **AGGREGATORS, **ours}
    for name, keys in values.items():
        model = sections.get(name)
        if model is None and not foreign and name in installed():
            model = ours[name] = find_method(name)
        if model is None:
            if foreign:
                continue
            known = nearest(name, [*sections, *installed()])
            faults.append(f"{places.get(name, path)}: [{name}] must be a known section; {known}")
            continue
        try:
            built[name] = model(**keys)
        except ValidationError as error:
            faults += [_fault(name, model, detail, places, path) for detail in error.errors()]
    if faults:
        raise ConfigError("\n".join(faults))
    return ExperimentConfig(
        **{name: built[name] for name in SECTIONS if name in built},
        methods={name: built.get(name) or cls() for name, cls in ours.items()},
        aggregators={name: built.get(name) or cls() for name, cls in AGGREGATORS.items()},
        origins=origins,
    )


@dataclasses.dataclass(frozen=True)
class _File:
    """values: its sections; lines: the line of every section and "section.key"; extends: another recipe's name."""

    path: Path
    values: Mapping[str, Mapping[str, Any]]
    lines: Mapping[str, int]
    extends: str | None


def _found(file: Path | str) -> Path:
    """A path as it is, unless there is no such file and it is the name of a recipe."""
    return Path(file) if Path(file).exists() else recipes().get(str(file), Path(file))


def _chain(path: Path) -> list[_File]:
    """A file after all that it extends, so that its values come last."""
    chain = [_read(path)]
    while (name := chain[0].extends) is not None:
        first, known = chain[0], recipes()
        place = f"{first.path}:{first.lines[reserved.EXTENDS]}: {reserved.EXTENDS}"
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
    lines: dict[str, int] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            name = header[1]
            lines[name] = number
        elif key := re.match(r"\s*([\w-]+(?:\.[\w-]+)*)\s*=", line):
            lines[f"{name}.{key[1]}" if name else key[1]] = number
    extends = tables.pop(reserved.EXTENDS, None)
    tables.pop(reserved.RECIPE, None)
    loose = [key for key, value in tables.items() if not isinstance(value, dict)]
    if loose:
        raise ConfigError(f"{path}:{lines.get(loose[0], 1)}: {loose[0]} must stand in a section such as [federation]")
    return _File(path, tables, lines, extends)


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
    message = (
        re.sub(r"^(Input|String) should", "must", detail["msg"])
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    return f"{message}, got {detail['input']!r}"


def _section_toml(name: str, section: Any, origins: Mapping[str, str]) -> str:
    summary = (type(section).__doc__ or "").strip().splitlines()[0]
    lines = [f"# {summary}", f"[{name}]"]
    left = {item.name for item in dataclasses.fields(TrainedMethod)} if isinstance(section, TrainedMethod) else set()
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if value is None and item.name in left:
            continue  # that of [federation]
        about = section.__pydantic_fields__[item.name].description
        origin = origins.get(f"{name}.{item.name}", "default")
        shown = tomli_w.dumps({item.name: value}).strip() if value is not None else f"# {item.name} ="
        lines.append(f"{shown}  # {about} [{origin}]")
    return "\n".join(lines) + "\n"
