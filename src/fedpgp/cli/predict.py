"""`fedpgp predict`: classify images with the prompts of a run."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer
from rich.progress import track
from rich.text import Text

import fedpgp
from fedpgp.cli.options import (
    Cache,
    Calibrate,
    ClassNames,
    Client,
    Device,
    FinishedRun,
    MovedCheckpoint,
    Quiet,
    class_names,
)
from fedpgp.cli.printing import err, next_command, print_listing, say
from fedpgp.errors import shown
from fedpgp.runtime.escaping import csv_cell

if TYPE_CHECKING:
    from fedpgp.serving.classifier import Answer

STDIN = "-"


def predict(
    run: FinishedRun,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, directories, or patterns in quotes. Use - to read file names from standard input."
        ),
    ],
    client: Client = None,
    classes: ClassNames = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Number of classes that are printed for each image, the most probable first.",
            show_default="1 in a table, every class in csv and json",
        ),
    ] = None,
    form: Annotated[
        Literal["table", "csv", "json"],
        typer.Option(
            "--format", help="Output format. Without --top, csv and json contain the probabilities of all classes."
        ),
    ] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result to this file instead of printing it.")
    ] = None,
    checkpoint: MovedCheckpoint = None,
    calibrate: Calibrate = False,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Classify images into any classes that you name, with the prompts of a finished run.

    If some images cannot be read, they are listed at the end, and the exit code is 2. All other images are classified.

    Examples:
        fedpgp predict out/fedpgp/seed-0 photos --client 3
        fedpgp predict out/fedpgp/seed-0 'photos/*.png' --classes 'zebra,red panda' --top 2
        find . -name '*.jpg' | fedpgp predict out/fedpgp/seed-0 - --format csv
    """
    from fedpgp.results.run_store import writing
    from fedpgp.runtime.files import new_file
    from fedpgp.serving.classifier import load, with_checkpoint
    from fedpgp.serving.memory import with_images

    files, names = image_files(images), class_names(classes)
    finished = with_checkpoint(fedpgp.load_run(run), checkpoint)
    (model,) = with_images([load(finished, client, device=device)], finished, cache, None, calibrate)
    if calibrate:
        say(f"The temperature is {model.temperature:.3g}, fitted to the run's validation images.")
    read = model.read(names)
    if names is None and (others := finished.results["task"].get("novel_names")):
        say(
            f"note: the model chooses among the {len(read.names)} classes that the run was trained on. It can also"
            f" recognise others, such as {others[0]}: add all names with --classes."
        )
    stream = model.stream(files, read)
    faults: list[str] = []

    def answers() -> Iterator["Answer"]:
        """Yield one answer at a time: with many class names, all answers need more memory than the model."""
        for answer in track(stream, "images", total=len(files), console=err, disable=quiet or not err.is_terminal):
            if answer.fault:
                faults.append(f"{answer.image} cannot be read: {answer.fault}")
            yield answer

    if form == "table" and output is None:
        whose = "shared model" if client is None else f"client {client}"
        _print(answers(), min(top or 1, len(read.names)), f"{model.method.name}, {whose}; {len(read.names)} classes")
    else:
        about = {"method": model.method.name, "client": client, "temperature": model.temperature}
        texts = _json(answers(), top, about) if form == "json" else _csv(answers(), top, read.names)
        if output is None:
            for text in texts:
                print(text, end="")
        else:
            with writing(output, "Use another file with -o"), new_file(output) as file:
                for text in texts:
                    file.write(text.encode())
    if not faults:
        next_command("export", run, *([] if client is None else ["--client", client]))
    else:
        raise fedpgp.FedPGPError(
            "\n".join([*faults, f"{len(faults)} of {len(files)} images were not classified"]),
            remedy="Replace these files, or leave them out",
        )


def image_files(given: Sequence[str]) -> list[Path]:
    """Return the image files in the order of the arguments, and the files of a directory sorted by name.

    Only arguments can be patterns; a line of standard input is always a file name.

    Raises
    ------
    click.UsageError
        There is no image.
    """
    files: list[Path] = []
    for text in given:
        if text == STDIN:
            names = (line.removesuffix("\r") for line in sys.stdin.read().split("\n"))
            files += [file for name in names if name for file in _files_of(name, pattern=False)]
        else:
            files += _files_of(text)
    if not files:
        raise click.UsageError("There is no image. Give files, directories or patterns, or - for standard input.")
    return files


def _files_of(name: str, pattern: bool = True) -> list[Path]:
    """Return a file, the images of a directory, or the matches of a pattern, without hidden and system files."""
    from fedpgp.data.sources.folder import hidden

    path = Path(name)
    if path.is_dir():
        inside = sorted(_below(path))
        if not inside:
            raise click.UsageError(f"The directory {shown(path)} contains no image. Use another directory.")
        return inside
    if path.exists():
        return [path]
    matched = sorted(Path(p) for p in glob(name, recursive=True)) if pattern else []  # noqa: PTH207 — also absolute
    if not matched:
        raise click.UsageError(
            f"{shown(name)} is not a file or directory, and as a pattern it matches no file. Use images that exist."
        )
    meant = set(path.parts)
    return [p for p in matched if p.is_file() and not any(hidden(part) for part in p.parts if part not in meant)]


def _below(directory: Path) -> Iterator[Path]:
    from fedpgp.data.sources.folder import hidden, is_image

    for place, folders, names in os.walk(directory):
        folders[:] = [folder for folder in folders if not hidden(folder)]
        files = (Path(place, name) for name in names if is_image(name) and not hidden(name))
        yield from (file for file in files if file.is_file())


def _print(answers: Iterable["Answer"], top: int, title: str) -> None:
    header = ["image"]
    for place in range(1, top + 1):
        header += ["class" if top == 1 else f"class {place}", "probability"]
    rows: list[list[str | Text]] = []
    for answer in answers:
        row: list[str | Text] = [answer.image]
        for name, probability in answer.best(top):
            row += [name, f"{probability:.3f}"]
        rows.append(row if not answer.fault else [*row, Text("not readable", "red")])
    print_listing(header, rows, right=["probability"], title=title)


def _json(answers: Iterable["Answer"], top: int | None, about: Mapping[str, object]) -> Iterator[str]:
    """Yield one JSON object in parts, one image at a time. `top`: None keeps all classes, in their order."""
    start, end = json.dumps({**about, "images": [0]}, indent=2, allow_nan=False).split("    0")
    yield start
    gap = ""
    for answer in answers:
        probabilities = dict(answer.best(top)) if top else answer.probabilities
        rest = {"error": answer.fault} if answer.fault else {"probabilities": probabilities}
        yield gap + indent(json.dumps({"image": answer.image, **rest}, indent=2, allow_nan=False), "    ")
        gap = ",\n"
    yield end + "\n"


def _csv(answers: Iterable["Answer"], top: int | None, names: Sequence[str]) -> Iterator[str]:
    """Yield a header, and a line for each image: the best class and all probabilities, or the `top` best classes."""

    def line(cells: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(map(csv_cell, cells))
        return text.getvalue()

    if top is not None:
        places = range(1, min(top, len(names)) + 1)
        yield line(["image", *(f"{what}_{place}" for place in places for what in ("class", "probability")), "error"])
        for answer in answers:
            cells = [cell for pair in answer.best(top) for cell in pair] or [""] * (2 * len(places))
            yield line([answer.image, *cells, answer.fault])
        return
    yield line(["image", "class", "probability", "error", *names])
    for answer in answers:
        best = ["", ""] if answer.fault else answer.best(1)[0]
        yield line([answer.image, *best, answer.fault, *answer.probabilities.values()])
