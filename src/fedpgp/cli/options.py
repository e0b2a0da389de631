"""Options that several commands have."""

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and no table.")]
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


def data_change(source: str) -> str:
    """The change that --data is short for, quoted: a path may look like a number."""
    return f"data.source={json.dumps(source, ensure_ascii=False)}"


def new_name(kind: str) -> Path:
    # The process id tells apart what was started in one second.
    return Path("fedpgp-runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def method_names(methods: str) -> list[str]:
    return [name.strip() for name in methods.split(",") if name.strip()]


def worker_count(count: int | None) -> int:
    if count is not None:
        return count
    return cores()
