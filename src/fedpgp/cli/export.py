"""`fedpgp export`: a prompt as files for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedpgp.cli.options import ClassNames, Client, FinishedRun, Force, class_names, new_name
from fedpgp.cli.printing import say
from fedpgp.errors import ConfigError


def export(
    run: FinishedRun,
    client: Client = None,
    form: Annotated[
        Literal["safetensors", "clip-head", "onnx", "hf"],
        typer.Option(
            "--format",
            help="safetensors: the prompt; clip-head: text features of some classes; onnx: image encoder and head; hf:"
            " a model of transformers with the prompt as tokens.",
        ),
    ] = "safetensors",
    classes: ClassNames = None,
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

    Examples:
        fedpgp export out/fedpgp/seed-0 --client 3 -o prompt
        fedpgp export out/fedpgp/seed-0 --format onnx --classes 'zebra,red panda' -o served
    """
    from fedpgp.serving import hub
    from fedpgp.serving.export import export as write

    if public and upload is None:
        raise ConfigError("--public goes with --upload")
    if upload is not None:
        hub.check_name(upload)
    directory = output or new_name(f"export-{form}")
    write(run, directory, form, client=client, classes=class_names(classes), force=force)
    say(f"written to {directory}; how to use it: {directory / 'README.md'}")
    if upload is not None:
        say(f"uploaded to {hub.upload(directory, upload, private=not public)}")
