"""`fedpgp export`: write a prompt as files for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedpgp.cli.options import ClassNames, Client, FinishedRun, Force, class_names, new_name
from fedpgp.cli.printing import next_command, say
from fedpgp.errors import ConfigError


def export(
    run: FinishedRun,
    client: Client = None,
    form: Annotated[
        Literal["safetensors", "clip-head", "onnx", "hf"],
        typer.Option(
            "--format",
            help="Format of the files. safetensors contains the prompt. clip-head contains the text features of"
            " --classes. onnx contains the image encoder and these text features. hf is a transformers model whose"
            " tokenizer has additional tokens for the prompt.",
        ),
    ] = "safetensors",
    classes: ClassNames = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for the files.", show_default="a new one in fedpgp-runs"),
    ] = None,
    force: Force = False,
    upload: Annotated[
        str | None,
        typer.Option(
            "--upload",
            metavar="OWNER/NAME",
            help="Upload the files to this repository of the Hugging Face hub. If the repository does not exist, it is"
            " created.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository of --upload public.")] = False,
) -> None:
    """Write a run's prompt as files that work without fedpgp, with a model card that explains how to use these files.

    --upload uses the token of `hf auth login`. A new repository is private unless --public is given.

    Examples:
        fedpgp export out/fedpgp/seed-0 --client 3 -o prompt
        fedpgp export out/fedpgp/seed-0 --format onnx --classes 'zebra,red panda' -o served
    """
    from fedpgp.serving import hub
    from fedpgp.serving.export import export as write

    if public and upload is None:
        raise ConfigError("--public needs --upload", remedy="Add --upload OWNER/NAME, or leave out --public")
    if upload is not None:
        hub.check_name(upload)
    directory = output or new_name(f"export-{form}")
    write(run, directory, form, client=client, classes=class_names(classes), force=force)
    say(f"The files are in {directory}. {directory / 'README.md'} explains how to use them.")
    if upload is None:
        next_command("predict", run, "IMAGES", *([] if client is None else ["--client", client]))
    else:
        say(f"The files were uploaded to {hub.upload(directory, upload, private=not public)}.")
