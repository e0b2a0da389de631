"""`fedpgp score`: accuracy, confusion and calibration on labelled images that were held out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

import fedpgp
from fedpgp.cli.options import (
    Cache,
    Calibrate,
    Changes,
    Device,
    FinishedRun,
    Force,
    Json,
    MovedCheckpoint,
    Quiet,
    class_names,
)
from fedpgp.cli.printing import err, out, print_json, print_listing, say
from fedpgp.reporting import ProgressBars, Silent

if TYPE_CHECKING:
    import pandas as pd

MODELS = 20  # most models in the printed table
CLASSES = 10  # most classes in the printed table
SHARED = "shared"
FIGURES = {
    "accuracy": "accuracy",
    "macro accuracy": "macro_accuracy",
    "own classes": "own_accuracy",
    "ECE": "calibration_error",
}


def score(
    run: FinishedRun,
    folder: Annotated[
        str,
        typer.Argument(
            help="Labelled images: a directory with a folder for each class, a CSV file, hf:ORG/NAME, or the name of a"
            " known dataset."
        ),
    ],
    client: Annotated[
        str, typer.Option("--client", help="Model to score: all, shared, or the number of a client.")
    ] = "all",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Class names among which the models choose, separated by commas, or a text file with one class name"
            " per line.",
            show_default="the classes of the run, and the other classes of the folder",
        ),
    ] = None,
    change: Changes = None,
    least: Annotated[
        float | None,
        typer.Option(
            "--min-accuracy",
            metavar="PERCENT",
            min=0,
            max=100,
            help="End with exit code 1 if the accuracy of the first model in the table is lower.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for scores.csv, classes.csv, confusion.csv and .png, reliability.csv and .png,"
            " predictions.csv and score.json.",
        ),
    ] = None,
    force: Force = False,
    checkpoint: MovedCheckpoint = None,
    calibrate: Calibrate = False,
    as_json: Json = False,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Score the models of a finished run on labelled images that were held out from training.

    The command prints accuracy, macro accuracy (the mean over classes), accuracy on the client's own classes, and the
    expected calibration error (ECE, 15 bins), each with its 95 % confidence interval. Class names are matched without
    regard to order, case and underscores.

    Exit codes: 0 if everything was scored, 1 if something was left out, if the run does not know a class name, or if
    the accuracy is below --min-accuracy, and 2 for bad input.

    Examples:
        fedpgp score out/fedpgp/seed-0 held-out
        fedpgp score out/fedpgp/seed-0 held-out --client 3 -o scores
        fedpgp score out/fedpgp/seed-0 labels.csv --client shared --min-accuracy 80 --quiet
    """
    from fedpgp.report.score import is_score, write_score
    from fedpgp.results.run_store import check_output, writing
    from fedpgp.runtime.files import new_directory

    if client not in ("all", SHARED) and not client.isdecimal():
        raise click.UsageError(f"--client must be all, shared, or the number of a client, got {client!r}.")
    if output is not None:
        check_output(output, force, is_score)
    with ProgressBars(err) as bars:
        found = fedpgp.score(
            run,
            folder,
            client="all" if client == "all" else None if client == SHARED else int(client),
            classes=class_names(classes),
            changes=change or (),
            checkpoint=checkpoint,
            calibrate=calibrate,
            device=device,
            cache=cache,
            reporter=Silent() if quiet else bars,
        )
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)
    if output is not None:
        with (
            writing(output, "Free some disk space, or use another directory with -o"),
            new_directory(output) as scratch,
        ):
            write_score(found, scratch)
    for text in found.notes:
        say(f"note: {text}")
    for text in found.left_out:
        say(f"warning: {text}")
    if output is not None:
        say(f"The results are in {output}. {output / 'confusion.png'} shows which classes are confused.")
    reached = float(found.models["accuracy"].iloc[0])
    if least is not None and reached < least:
        say(f"warning: The accuracy of the first model ({found.first}) is {reached:.1f} %, below {least:g} %.")
    if found.left_out or (least is not None and reached < least):
        raise typer.Exit(1)


def _print(found: "fedpgp.Score") -> None:
    models = found.models
    title = (
        f"{found.method} on {found.folder}: {models['images'].iloc[0]} images, {len(found.candidates)} candidate"
        " classes; percent (95 % interval)"
    )
    shown = [name for name, field in FIGURES.items() if models[field].notna().any()]
    some = models
    if len(models) > MODELS:
        lowest = models.iloc[1:].nsmallest(MODELS - 1, "accuracy")
        some = models.loc[[models.index[0], *lowest.index]]
        title += f"; the {MODELS - 1} clients of {len(models) - 1} with the lowest accuracy"
    rows = [[row["model"], *(_cell(row, FIGURES[name]) for name in shown)] for _, row in some.iterrows()]
    print_listing(["model", *shown], rows, shown, title)
    rows = list(_hardest(found))
    if rows:
        header = ["class", "images", "accuracy", "mistaken for"]
        print_listing(header, rows, header[1:3], f"hardest classes, {found.first}")


def _hardest(found: "fedpgp.Score") -> Iterator[list[str]]:
    """Yield rows of the classes with the lowest accuracy of the first model."""
    classes = found.classes[found.classes["model"] == found.first]
    for _, row in classes[classes["accuracy"] < 100].nsmallest(CLASSES, "accuracy").iterrows():
        yield [row["class"], str(row["images"]), _cell(row, "accuracy", ""), row["mistaken_for"]]


def _cell(row: "pd.Series", name: str, prefix: str | None = None) -> str:
    prefix = f"{name}_" if prefix is None else prefix
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    if low != low:  # NaN: no image counts
        return ""
    # In a narrow terminal, the interval is on the line below the figure.
    return f"{row[name]:.1f}{' ' if out.width >= 110 else chr(10)}({low:.1f} to {high:.1f})"
