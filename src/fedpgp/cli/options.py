"""Single options that several commands share, the meaning of their values, and how a command is added to its group."""

import inspect
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fedpgp.cli import completion
from fedpgp.cli.printing import say
from fedpgp.runtime.processes import cores

if TYPE_CHECKING:
    pass

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
            if "torch" not in sys.modules and not values.get("quiet") and values.get("log_format") != "json":  # seconds
                say("fedpgp: loading libraries …")
            function(**values)

        return app.command(name, help=description, epilog=epilog)(announced)

    return add


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
