"""`fedpgp predict`."""

import csv
import io
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import fedpgp
from fedpgp.cli.options import Cache, Device, Quiet
from fedpgp.cli.printing import err, out, print_json

if TYPE_CHECKING:
    from fedpgp.serving.classifier import Answer

STDIN = "-"


class AnswerForm(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


Client = Annotated[
    int | None,
    typer.Option("--client", help="Whose model, from 0.", show_default="the shared part, as a newcomer has it"),
]


def predict(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    images: Annotated[
        list[str], typer.Argument(help="Files, directories, patterns in quotes; - reads names from standard input.")
    ],
    client: Client = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Any class names with commas between, or a file with a name in each line.",
            show_default="those that were trained on",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Likeliest classes to tell of each image.")] = 1,
    form: Annotated[AnswerForm, typer.Option("--format", help="csv and json have the probability of every class.")] = (
        AnswerForm.table
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Divide logits by the temperature that suits the run's validation images."),
    ] = False,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Classify images with the prompts of a finished run, among any class names.

    What cannot be read is named at the end, and the exit code is 2; all other images are answered.
    """
    from fedpgp.results.run_store import writing
    from fedpgp.runtime.files import write, write_json
    from fedpgp.serving.classifier import load
    from fedpgp.serving.memory import remembers, with_memory, with_temperature

    files = found_images(images)
    names = None if classes is None else class_names(classes)
    found = fedpgp.load_run(run)
    model = load(found, client, device=device)
    if client is not None and remembers(model.method):
        model = with_memory(model, found, cache, None)
    if calibrate:
        model = with_temperature(model, found, cache, None)
        err.print(f"temperature {model.temperature:.3g}, from the run's validation images", markup=False)
    read = model.read(names)
    stream = model.stream(files, read)
    answers = list(track(stream, "images", total=len(files), console=err, disable=quiet or not err.is_terminal))
    whose = "the shared part" if client is None else f"client {client}"
    if form is AnswerForm.table and output is None:
        _print(answers, top, f"{model.method.name}, {whose}; {len(read.names)} classes")
    elif form is AnswerForm.json:
        rows = [
            {"image": one.image, **({"error": one.fault} if one.fault else {"probabilities": one.probabilities})}
            for one in answers
        ]
        content = {"method": model.method.name, "client": client, "temperature": model.temperature, "images": rows}
        if output is None:
            print_json(content)
        else:
            with writing(output, "name another with -o"):
                write_json(output, content)
    else:
        text = _csv(answers, read.names)
        if output is None:
            print(text, end="")
        else:
            with writing(output, "name another with -o"):
                write(output, text.encode())
    faults = [one for one in answers if one.fault]
    if faults:
        lines = [f"{one.image} cannot be read: {one.fault}" for one in faults]
        raise fedpgp.FedPGPError("\n".join([*lines, f"{len(faults)} of {len(answers)} images were left out"]))


def class_names(text: str) -> list[str]:
    """Names with commas between, or those of a file that has one in each line."""
    from fedpgp.data.sources.names import read_lines

    if text.endswith(".txt") or ("," not in text and Path(text).is_file()):
        return read_lines(Path(text))
    return [name.strip() for name in text.split(",") if name.strip()]


def found_images(given: Sequence[str]) -> list[Path]:
    """The image files that are meant, in the order of the arguments, those of a directory by name; raises UsageError
    where there are none."""
    from glob import glob

    from fedpgp.data.decode import SUFFIXES

    found: list[Path] = []
    for one in (line for text in given for line in (sys.stdin.read().splitlines() if text == STDIN else [text])):
        path = Path(one)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise click.UsageError(f"{path} holds no image: name a directory that does")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            matched = sorted(Path(p) for p in glob(one, recursive=True))  # noqa: PTH207 — also absolute patterns
            if not matched:
                raise click.UsageError(f"{one} is no file, no directory, and matches none: name images that exist")
            found += [p for p in matched if p.is_file()]
    if not found:
        raise click.UsageError("no image was named: name files, directories or patterns, or - for standard input")
    return found


def _print(answers: Sequence["Answer"], top: int, title: str) -> None:
    listing = Table("image", title=escape(title), title_justify="left", header_style="bold", box=None)
    for place in range(1, top + 1):
        listing.add_column("class" if top == 1 else f"class {place}", overflow="fold")
        listing.add_column("probability", justify="right")
    for one in answers:
        cells = [cell for name, share in one.best(top) for cell in (escape(name), f"{share:.3f}")]
        listing.add_row(escape(one.image), *(cells or ["[red]not readable[/]"]))
    out.print(listing)


def _csv(answers: Sequence["Answer"], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", "error", *names])
    for one in answers:
        best = [""] * 2 if one.fault else list(one.best(1)[0])
        writer.writerow([one.image, *best, one.fault, *one.probabilities.values()])
    return text.getvalue()
