"""`fedpgp methods`: list the methods."""

from dataclasses import asdict
from typing import Annotated

import typer

from fedpgp.cli.options import Checkpoint, ConfigFile, Json
from fedpgp.cli.printing import out, print_json, print_listing

HEADER = ("name", "year", "venue", "shared", "private", "reads", "description")


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Describe one method: a built-in one, or yours as path/to/file.py:Name.")
    ] = None,
    config: ConfigFile = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """List the methods, with their numbers of shared and private parameters.

    The numbers depend on the checkpoint. They are computed for --checkpoint, or else for the checkpoint of --config.
    The list also says which methods cannot use this checkpoint.

    Examples:
        fedpgp methods
        fedpgp methods --checkpoint openai/clip-vit-base-patch16
        fedpgp methods fedpgp
    """
    from fedpgp.runs.catalogue import about, catalogue

    if name is not None:
        out.print(about(name), markup=False)
        return
    entries = catalogue(config, checkpoint)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [
        (
            entry.name,
            str(entry.year or ""),
            entry.venue,
            "" if entry.shared is None else f"{entry.shared:,}",
            "" if entry.private is None else f"{entry.private:,}",
            ", ".join(entry.reads),
            f"does not fit: the method {entry.misfit}" if entry.misfit else entry.summary,
        )
        for entry in entries
    ]
    print_listing(HEADER, rows, right=("year", "shared", "private"))
