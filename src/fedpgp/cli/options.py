"""Options that several commands have, what their values mean, and how a command joins its group."""

import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import click
import typer
from click.core import ParameterSource
from rich.markup import escape

from fedpgp.runtime.processes import cores

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file, or a recipe's name: pictograms-styles or pictograms-styles-classes. What a file leaves out has"
        " the paper's value, or that of the recipe which it extends.",
        show_default="pictograms",
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated.")
]
Settings = Annotated[
    str | None,
    typer.Option(
        "--settings",
        metavar="published",
        help="Use the values that each method was published with, and print them with their sources. They replace"
        " values of the config file; --set replaces both.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory to write; without it, a new one in fedpgp-runs/.")
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
Device = Annotated[str | None, typer.Option("--device", help="Short for --set backbone.device=…: cpu, cuda, cuda:1.")]
Precision = Annotated[
    str | None, typer.Option("--precision", help="Short for --set backbone.precision=…: float32, bf16, float64.")
]
DataSource = Annotated[
    str | None,
    typer.Option("--data", help="Short for --set data.source=…: a directory, a CSV file, hf:ORG/NAME, a known name."),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Go on with what was stopped in DIR; its settings are there, so only --workers, --cache-dir,"
        " --skip-bad-images, --track, --json and --quiet go with it, and the file of a method of your own.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="KIND:WHERE",
        help="Tell every round to tensorboard:DIRECTORY, mlflow:URI or wandb:PROJECT; may be repeated.",
    ),
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

Command = Callable[..., None]

# Names of the parameters that go with --resume; a method's name says where the file of one of your own is.
WITH_RESUME = {"resume", "method", "methods", "workers", "cache", "skip_bad_images", "track", "as_json", "quiet"}


def command(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Add a function to a group of commands; the examples at the end of its docstring stand below its options.

    name: None takes that of the function.
    """

    def add(function: Command) -> Command:
        description, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
        lines = [f"[bold]{escape(line.strip())}[/]" for line in examples.splitlines()]
        return app.command(name, help=description, epilog="\n\n".join(["Examples:", *lines]))(function)

    return add


def check_resumed(directory: Path) -> None:
    """Raise UsageError where a setting was typed beside --resume."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in WITH_RESUME and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--resume {directory} goes on with the settings of that run: leave out {parameter.opts[0]}"
            )


def data_change(source: str) -> str:
    """The change that --data is short for, quoted: a path may look like a number."""
    return f"data.source={json.dumps(source, ensure_ascii=False)}"


def all_changes(
    change: list[str] | None, data: str | None, device: str | None = None, precision: str | None = None
) -> list[str]:
    """The changes of --set, and those that --data, --device and --precision are short for."""
    changes = [*(change or []), *([] if data is None else [data_change(data)])]
    short = {"device": device, "precision": precision}
    return changes + [f"backbone.{key}={value}" for key, value in short.items() if value is not None]


def new_name(kind: str) -> Path:
    # The process id tells apart what was started in one second.
    return Path("fedpgp-runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def method_names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]


def class_names(text: str | None) -> list[str] | None:
    """What --classes names: names with commas between, or those of a file that has one in each line."""
    from fedpgp.data.sources.names import read_lines

    if text is None:
        return None
    if text.endswith(".txt") or ("," not in text and Path(text).is_file()):
        return read_lines(Path(text))
    return [name.strip() for name in text.split(",") if name.strip()]


def worker_count(count: int | None) -> int:
    return cores() if count is None else count
