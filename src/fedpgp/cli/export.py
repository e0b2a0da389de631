"""`fedpgp export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedpgp.cli.options import Force, new_name
from fedpgp.cli.predict import Client, class_names
from fedpgp.cli.printing import err
from fedpgp.errors import ConfigError


class ExportForm(StrEnum):
    safetensors = "safetensors"
    clip_head = "clip-head"
    onnx = "onnx"
    hf = "hf"


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    client: Client = None,
    form: Annotated[
        ExportForm,
        typer.Option(
            "--format",
            help="safetensors: the prompt; clip-head: text features of some classes; onnx: image encoder and head; hf:"
            " a CLIP of transformers with the prompt as tokens.",
        ),
    ] = ExportForm.safetensors,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Of a head: any class names with commas between, or a file with a name in each line.",
            show_default="those that were trained on",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Directory to write.")] = None,
    force: Force = False,
    upload: Annotated[
        str | None,
        typer.Option(
            "--upload",
            metavar="OWNER/NAME",
            help="Then upload it to this repository of the hub, which is made if missing.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --upload: for everybody to read.")] = False,
) -> None:
    """Write a run's prompt as files that others use without fedpgp, with a model card that shows how.

    --upload takes the token of `hf auth login`, and a private repository unless --public is given.
    """
    from fedpgp.serving import hub
    from fedpgp.serving.export import export as write

    if public and upload is None:
        raise ConfigError("--public goes with --upload")
    if upload is not None:
        hub.check_name(upload)
    names = None if classes is None else class_names(classes)
    directory = output or new_name(f"export-{form.value}")
    write(run, directory, form.value, client=client, classes=names, force=force)
    err.print(f"written to {directory}; how to use it: {directory / 'README.md'}", markup=False)
    if upload is not None:
        err.print(f"uploaded to {hub.upload(directory, upload, private=not public)}", markup=False)
