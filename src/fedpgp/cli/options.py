"""Options that several commands have, what their values mean, and how a command joins its group."""

import inspect
import json
import os
import re
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import click
import typer
from click.core import ParameterSource
from rich.markup import escape

from fedpgp.reporting import Reporter
from fedpgp.runtime.processes import cores

if TYPE_CHECKING:
    from fedpgp.runs.execution import ExecutionOptions

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file, or a recipe's name: photographs, pictograms-styles or pictograms-styles-classes. What a file"
        " leaves out has the paper's value, or that of the recipe which it extends.",
        show_default="pictograms; with --backbone photoclip: photographs",
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output directory if it exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print what would be run, and do nothing else.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and no table.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes; any number gives the same result.", show_default="cores")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where image features are kept; by default the user's cache directory."),
]
SkipBadImages = Annotated[
    bool, typer.Option("--skip-bad-images", help="Go on without the images that do not decode, and name them.")
]
CHECKPOINTS = (
    "photoclip (embedded, knows photographs), pictoclip (embedded, knows icons), a directory or file, a hub id, or"
    " open_clip:ARCHITECTURE/TAG."
)
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help=f"Dual encoder: {CHECKPOINTS}")]
BackboneName = Annotated[
    str | None, typer.Option("--backbone", help=f"Short for --set backbone.checkpoint=…: {CHECKPOINTS}")
]
Device = Annotated[str | None, typer.Option("--device", help="Short for --set backbone.device=…: cpu, cuda, cuda:1.")]
DataSource = Annotated[
    str | None,
    typer.Option("--data", help="Short for --set data.source=…: a directory, a CSV file, hf:ORG/NAME, a known name."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
FinishedRun = Annotated[Path, typer.Argument(help="A finished run's directory.")]
Client = Annotated[
    int | None,
    typer.Option("--client", help="Whose model, from 0.", show_default="the shared part, as a newcomer has it"),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Any class names with commas between, or a file with a name in each line.",
        show_default="those that were trained on",
    ),
]

SHORT_FORMS = {  # option -> what it is short for
    "data": "data.source",
    "backbone": "backbone.checkpoint",
    "device": "backbone.device",
    "precision": "backbone.precision",
    "rounds": "federation.rounds",
}

Command = Callable[..., None]


def command(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Add a function to a group of commands; the examples at the end of its docstring stand below its options.

    name: None takes that of the function.
    """

    def add(function: Command) -> Command:
        description, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
        lines = [f"[bold]{escape(line.strip())}[/]" for line in examples.splitlines()]
        return app.command(name, help=description, epilog="\n\n".join(["Examples:", *lines]))(function)

    return add


@dataclass(frozen=True)
class OutputOptions:
    """The options of every command that writes runs: where they go, and what is told of them."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to write; without it, a new one in fedpgp-runs/.")
    ] = None
    force: Force = False
    as_json: Json = False
    cache: Cache = None
    quiet: Quiet = False

    def directory(self, kind: str) -> Path:
        """Return that of --output, or a new name."""
        return self.output or new_name(kind)


@dataclass(frozen=True)
class WorkOptions(OutputOptions):
    """The options of every command that trains: how results are made, where they go, and how to go on.

    Raises UsageError where a setting was typed beside --resume.
    """

    what: ClassVar[str] = "study"  # that --resume goes on with
    beside_resume: ClassVar[Set[str]] = {"resume", "workers", "cache", "skip_bad_images", "as_json", "quiet"}

    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with what was stopped in DIR; its settings are there, so only --workers, --cache-dir,"
            " --skip-bad-images, --json and --quiet go with it, and the file of a method of your own and --track where"
            " the command has them.",
        ),
    ] = None
    workers: Workers = None
    skip_bad_images: SkipBadImages = False

    def __post_init__(self) -> None:
        context = click.get_current_context()
        for parameter in context.command.params if self.resume is not None else ():
            typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
            if typed and parameter.name not in self.beside_resume:
                raise click.UsageError(
                    f"--resume {self.resume} goes on with the settings of that {self.what}: leave out"
                    f" {parameter.opts[0]}"
                )

    def directory(self, kind: str) -> Path:
        """Return that of --resume or --output, or a new name."""
        return self.resume or super().directory(kind)

    def execution(self, reporter: Reporter) -> "ExecutionOptions":
        """Return what functions of the library take."""
        return {
            "workers": worker_count(self.workers),
            "cache": self.cache,
            "skip_bad_images": self.skip_bad_images,
            "reporter": reporter,
        }


@dataclass(frozen=True)
class RunOptions(WorkOptions):
    """The options of `fedpgp run` and `fedpgp compare`."""

    what: ClassVar[str] = "run"
    beside_resume: ClassVar[Set[str]] = WorkOptions.beside_resume | {"method", "methods", "track", "rounds"}

    config: ConfigFile = None
    data: DataSource = None
    backbone: BackboneName = None
    rounds: Annotated[
        str | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Short for --set federation.rounds=N. With --resume DIR: +N, to add N rounds to finished runs.",
        ),
    ] = None
    change: Changes = None
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            metavar="published",
            help="Use the values that each method was published with, and print them with their sources. They replace"
            " values of the config file; --set replaces both.",
        ),
    ] = None
    device: Device = None
    precision: Annotated[
        str | None, typer.Option("--precision", help="Short for --set backbone.precision=…: float32, bf16, float64.")
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            metavar="KIND:WHERE",
            help="Tell every round to tensorboard:DIRECTORY, mlflow:URI or wandb:PROJECT; may be repeated.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        form = r"\+[1-9]\d*" if self.resume else r"\d+"
        if self.rounds is not None and not re.fullmatch(form, self.rounds, re.ASCII):
            allowed = "+N with --resume, such as --rounds +10" if self.resume else "a whole number, such as --rounds 10"
            raise click.UsageError(f"--rounds must be {allowed}, got {self.rounds!r}.")

    @property
    def more_rounds(self) -> int:
        """Return how many rounds are to be added to finished runs."""
        return int(self.rounds or 0) if self.resume else 0

    @property
    def experiment(self) -> dict[str, Any]:
        """The arguments of `fedpgp.run` and `fedpgp.compare` that say what is run."""
        changes = all_changes(
            self.change,
            data=self.data,
            backbone=self.backbone,
            device=self.device,
            precision=self.precision,
            rounds=None if self.rounds is None else int(self.rounds),
        )
        return {"config": self.config, "changes": changes, "settings": self.settings}


def with_options(kind: type[Any]) -> Callable[[Command], Command]:
    """Give a command an option for each field of a kind of options, in the place of its last parameter `options`."""
    of_output = {field.name for field in fields(OutputOptions)}
    ordered = sorted(fields(kind), key=lambda field: field.name in of_output)  # --output follows what is run
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

        complete.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        complete.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        return complete

    return wrap


def all_changes(change: list[str] | None, **short: str | int | None) -> list[str]:
    """The changes of --set, and those that options of the names in `SHORT_FORMS` are short for.

    Values are quoted: a path may look like a number. Raises UsageError where --set has another value.
    """
    from fedpgp.config import parse_change

    typed = {f"{section}.{key}": value for section, key, value in map(parse_change, change or ())}
    changes = list(change or ())
    for name, value in short.items():
        place = SHORT_FORMS[name]
        if value is None:
            continue
        if typed.get(place, value) != value:
            raise click.UsageError(f"--{name} {value} and --set {place}={typed[place]} differ: leave one of them out")
        changes.append(f"{place}={json.dumps(value, ensure_ascii=False)}")
    return changes


def new_name(kind: str) -> Path:
    # The process id tells apart what was started in one second.
    return Path("fedpgp-runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def listed(text: str | None) -> list[str] | None:
    """Return names that were typed with commas between; None for an option that was left out."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def class_names(text: str | None) -> list[str] | None:
    """What --classes names: names with commas between, or those of a file that has one in each line."""
    from fedpgp.data.sources.names import read_lines
    from fedpgp.runtime.files import exists

    if text is not None and (text.endswith(".txt") or ("," not in text and exists(text) and Path(text).is_file())):
        return read_lines(Path(text))
    return listed(text)


def worker_count(count: int | None) -> int:
    return cores() if count is None else count
