"""Options that several commands share, the meaning of their values, and how a command is added to its group."""

import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import click
import typer
from click.core import ParameterSource
from rich.markup import escape

from fedpgp.cli import completion
from fedpgp.cli.printing import say
from fedpgp.reporting import Reporter
from fedpgp.runtime.processes import cores

if TYPE_CHECKING:
    from fedpgp.runs.execution import ExecutionOptions

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Config file in TOML, or the name of a recipe: pictograms, photographs, pictograms-styles or"
        " pictograms-styles-classes. A file can extend a recipe. If neither sets a value, the paper's value is used.",
        autocompletion=completion.of_names("recipes"),
        show_default="pictograms; with --backbone photoclip: photographs",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one value of the config. Can be repeated.",
        autocompletion=completion.of_settings,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the plan, and stop before the first run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of a table.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Number of worker processes. Results do not depend on this number.",
        show_default="one for each core",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir", help="Directory of the cache of image features.", show_default="the user's cache directory"
    ),
]
SkipBadImages = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be decoded, and print their names.")
]
CHECKPOINTS = (
    "photoclip (in the package, for photographs), pictoclip (in the package, for icons), a directory or file,"
    " a model id of the Hugging Face hub, or open_clip:ARCHITECTURE/TAG."
)
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        "--checkpoint",
        help=f"Checkpoint of a dual encoder: {CHECKPOINTS}",
        autocompletion=completion.of_values("backbone.checkpoint"),
    ),
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help=f"Checkpoint of the dual encoder (--set backbone.checkpoint=…): {CHECKPOINTS}",
        autocompletion=completion.of_values("backbone.checkpoint"),
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device for all computations (--set backbone.device=…): cpu, cuda or cuda:1.",
        autocompletion=completion.of_values("backbone.device"),
    ),
]
DataSource = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Dataset (--set data.source=…): a directory, a CSV file, hf:ORG/NAME, or the name of a known dataset.",
        autocompletion=completion.of_values("data.source"),
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
FinishedRun = Annotated[Path, typer.Argument(help="Directory of a finished run.")]
Client = Annotated[
    int | None,
    typer.Option(
        "--client",
        help="Use the model of the client with this number. The first client is 0.",
        show_default="the shared model, without a private part",
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Class names, separated by commas, or a text file with one class name per line.",
        show_default="the classes of the run",
    ),
]
MovedCheckpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Directory or file of the run's checkpoint, if the checkpoint was moved.",
        show_default="backbone.checkpoint of the run",
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate", help="Divide the logits by a temperature that is fitted to the run's validation images."
    ),
]

SHORT_FORMS = {  # option -> the field that it sets
    "data": "data.source",
    "backbone": "backbone.checkpoint",
    "device": "backbone.device",
    "precision": "backbone.precision",
    "rounds": "federation.rounds",
}

Command = Callable[..., None]


def command(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Return a decorator that adds a function to a group of commands.

    The examples at the end of the function's docstring are printed below its options.

    Parameters
    ----------
    app
        The group.
    name
        Name of the command; None takes the name of the function.
    """

    def add(function: Command) -> Command:
        description, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
        description = "\n\n".join(" ".join(paragraph.split()) for paragraph in description.split("\n\n"))
        lines = [f"[bold]{escape(line.strip())}[/]" for line in examples.splitlines()]
        epilog = "\n\n".join(["Examples:", *lines])

        @wraps(function)
        def announced(**values: Any) -> None:
            if "torch" not in sys.modules and not values.get("quiet"):  # importing it takes seconds
                say("fedpgp: loading libraries …")
            function(**values)

        return app.command(name, help=description, epilog=epilog)(announced)

    return add


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
        return _number(self.rounds or "+0", r"\+\d+", "+N with --resume, such as --rounds +10") if self.resume else 0

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


def new_name(kind: str) -> Path:
    """Return a new directory name in fedpgp-runs; the process id distinguishes two starts within one second."""
    return Path("fedpgp-runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def listed(text: str | None) -> list[str] | None:
    """Split names that are separated by commas; return None for an option that was left out."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def class_names(text: str | None) -> list[str] | None:
    """Return the names of --classes: names separated by commas, or a file with one name per line."""
    from fedpgp.data.sources.names import read_lines
    from fedpgp.runtime.files import exists

    if text is not None and (text.endswith(".txt") or ("," not in text and exists(text) and Path(text).is_file())):
        return read_lines(Path(text))
    return listed(text)


def worker_count(count: int | None) -> int:
    """Return the number of worker processes, by default one for each core."""
    return cores() if count is None else count
