"""Groups of options that several commands share, as dataclasses whose fields are options."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import click
import typer
from click.core import ParameterSource

from fedpgp.cli import completion
from fedpgp.cli.options import (
    BackboneName,
    Cache,
    Changes,
    Command,
    ConfigFile,
    DataSource,
    Device,
    Force,
    Json,
    Quiet,
    SkipBadImages,
    Workers,
    new_name,
    worker_count,
)
from fedpgp.reporting import Reporter

if TYPE_CHECKING:
    from fedpgp.runs.execution import ExecutionOptions

SHORT_FORMS = {  # option -> the field that it sets
    "data": "data.source",
    "backbone": "backbone.checkpoint",
    "device": "backbone.device",
    "precision": "backbone.precision",
    "rounds": "federation.rounds",
}


@dataclass(frozen=True)
class OutputOptions:
    """Options of every command that writes runs: the output directory and what is printed."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for the results.", show_default="a new one in fedpgp-runs"),
    ] = None
    force: Force = False
    as_json: Json = False
    cache: Cache = None
    quiet: Quiet = False

    def directory(self, kind: str) -> Path:
        """Return the directory of --output, or a new name."""
        return self.output or new_name(kind)


@dataclass(frozen=True)
class WorkOptions(OutputOptions):
    """Options of every command that trains: the execution, the output directory and the run that is resumed.

    Raises
    ------
    click.UsageError
        A setting was typed together with --resume.
    """

    what: ClassVar[str] = "study"  # the noun for what --resume continues
    beside_resume: ClassVar[Set[str]] = {
        "resume", "workers", "cache", "skip_bad_images", "as_json", "quiet", "method", "methods", "track", "trials"
    }  # fmt: skip

    resume: Path | None = None  # `with_options` adds the option
    workers: Workers = None
    skip_bad_images: SkipBadImages = False

    def __post_init__(self) -> None:
        context = click.get_current_context()
        for parameter in context.command.params if self.resume is not None else ():
            typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
            if typed and parameter.name not in self.beside_resume:
                raise click.UsageError(
                    f"--resume {self.resume} uses the settings of that {self.what}. Leave out {parameter.opts[0]}."
                )

    def directory(self, kind: str) -> Path:
        """Return the directory of --resume or --output, or a new name."""
        return self.resume or super().directory(kind)

    def execution(self, reporter: Reporter) -> "ExecutionOptions":
        """Return the options as keyword arguments of the library's functions."""
        return {
            "workers": worker_count(self.workers),
            "cache": self.cache,
            "skip_bad_images": self.skip_bad_images,
            "reporter": reporter,
        }


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of every command that reads a config: the config, and changes of its values.

    Every such command takes all of them, so that the options of a run can be pasted.
    """

    config: ConfigFile = None
    data: DataSource = None
    backbone: BackboneName = None
    rounds: Annotated[
        str | None, typer.Option("--rounds", metavar="N", help="Number of rounds (--set federation.rounds=N).")
    ] = None
    change: Changes = None
    device: Device = None
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="Precision of the encoders (--set backbone.precision=…): float32, bf16 or float64.",
            autocompletion=completion.of_values("backbone.precision"),
        ),
    ] = None

    @property
    def changes(self) -> list[str]:
        """The changes of --set, and the changes that the other options abbreviate.

        Raises
        ------
        click.UsageError
            An option and --set give different values, or --rounds is not a number.
        """
        return all_changes(
            self.change,
            data=self.data,
            backbone=self.backbone,
            device=self.device,
            precision=self.precision,
            rounds=None if self.rounds is None else _number(self.rounds),
        )

    @property
    def experiment(self) -> dict[str, Any]:
        """The arguments `config` and `changes` of the library's functions."""
        return {"config": self.config, "changes": self.changes}


@dataclass(frozen=True)
class StudyOptions(WorkOptions, ExperimentOptions):
    """Options of every command that trains on a config."""


@dataclass(frozen=True)
class RunOptions(StudyOptions):
    """Options of `fedpgp run` and `fedpgp compare`."""

    what: ClassVar[str] = "run"
    beside_resume: ClassVar[Set[str]] = WorkOptions.beside_resume | {"rounds"}

    rounds: Annotated[
        str | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Number of rounds (--set federation.rounds=N). With --resume DIR, +N adds N rounds to finished runs.",
        ),
    ] = None
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            metavar="published",
            help="Use the values that were published for each method, and print the source of each value. Published"
            " values have priority over the config file, and --set has priority over both.",
        ),
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            metavar="KIND:WHERE",
            help="Log every round to tensorboard:DIRECTORY, mlflow:URI or wandb:PROJECT. Can be repeated.",
        ),
    ] = None

    @property
    def more_rounds(self) -> int:
        """Return the number of rounds to add to finished runs."""
        if self.resume is None or self.rounds is None:
            return 0
        return _number(self.rounds, r"\+[1-9]\d*", "+N with --resume, such as --rounds +10")

    @property
    def experiment(self) -> dict[str, Any]:
        """The arguments of `fedpgp.run` and `fedpgp.compare` that describe the experiment."""
        return {**super().experiment, "settings": self.settings}


def _number(text: str, form: str = r"\d+", allowed: str = "a whole number, such as --rounds 10") -> int:
    """Return the number of --rounds; raise UsageError if its form is wrong."""
    if not re.fullmatch(form, text, re.ASCII):
        raise click.UsageError(f"--rounds must be {allowed}, got {text!r}.")
    return int(text)


def with_options(kind: type[Any], *left_out: str) -> Callable[[Command], Command]:
    """Return a decorator that replaces a command's last parameter `options` by one option for each field of `kind`.

    The fields `left_out` keep their default.
    """
    of_output = {field.name for field in fields(OutputOptions)}
    shown = [field for field in fields(kind) if field.name not in left_out]
    ordered = sorted(shown, key=lambda field: field.name in of_output)  # the output options come last
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in ordered
    ]

    def wrap(function: Command) -> Command:
        *own, _ = inspect.signature(function).parameters.values()

        @wraps(function)
        def complete(**values: Any) -> None:
            options = kind(**{parameter.name: values.pop(parameter.name) for parameter in shared})
            function(**values, options=options)

        parameters = [*own, *shared]
        if issubclass(kind, WorkOptions):
            resume = Annotated[
                Path | None, typer.Option("--resume", metavar="DIR", help=_resume_help(kind.beside_resume, parameters))
            ]
            parameters = [p.replace(annotation=resume) if p.name == "resume" else p for p in parameters]
        complete.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        complete.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return complete

    return wrap


def _resume_help(beside: Set[str], parameters: Iterable[inspect.Parameter]) -> str:
    """Return the help of --resume, which names the options of the command that can be added to it."""
    # typer.Option keeps its first argument, the flag, as `default`.
    flags = {p.name: p.annotation.__metadata__[0].default for p in parameters if p.name in beside - {"resume"}}
    methods = [flags.pop(name) for name in ("method", "methods") if name in flags]
    *others, last = flags.values()
    own = f" If you use your own method, give its file again with {methods[0]}." if methods else ""
    start = "Continue the interrupted work in DIR with its stored settings."
    return f"{start} You can add {', '.join(others)} and {last}.{own}"


def all_changes(change: list[str] | None, **short: str | int | None) -> list[str]:
    """Return the changes of --set, and the changes that the options of `SHORT_FORMS` abbreviate.

    Values are quoted, because a path may look like a number.

    Raises
    ------
    click.UsageError
        An option and --set give different values.
    """
    from fedpgp.config import parse_change

    typed = {f"{section}.{key}": value for section, key, value in map(parse_change, change or ())}
    changes = list(change or ())
    for name, value in short.items():
        place = SHORT_FORMS[name]
        if value is None:
            continue
        if typed.get(place, value) != value:
            raise click.UsageError(f"--{name} {value} and --set {place}={typed[place]} differ. Leave out one of them.")
        changes.append(f"{place}={json.dumps(value, ensure_ascii=False)}")
    return changes
