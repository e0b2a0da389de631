"""`fedpgp methods`: list the methods."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import ExperimentOptions, with_options
from fedpgp.cli.options import Checkpoint, Json
from fedpgp.cli.printing import next_command, out, print_json, print_listing

HEADER = ("name", "year", "venue", "shared", "private", "reads", "description")


@dataclass(frozen=True)
class MethodsOptions(ExperimentOptions):
    """Options of an experiment, with --checkpoint as a second name of --backbone, as in `fedpgp doctor`."""

    backbone: Checkpoint = None


@with_options(MethodsOptions)
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Describe one method: a built-in one, or yours as path/to/file.py:Name.",
            autocompletion=completion.of_names("methods"),
        ),
    ] = None,
    as_json: Json = False,
    *,
    options: MethodsOptions,
) -> None:
    """List the methods, with their numbers of shared and private parameters.

    The numbers depend on the checkpoint. They are computed for --backbone, or else for the checkpoint of --config.
    The list also says which methods cannot use this checkpoint.

    Examples:
        fedpgp methods
        fedpgp methods --backbone openai/clip-vit-base-patch16
        fedpgp methods fedpgp
    """
    from fedpgp.runs.catalogue import about, catalogue

    if name is not None:
        out.print(about(name), markup=False)
        next_command("run", "--method", name)
        return
    entries = catalogue(**options.experiment)
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
    next_command("methods", "fedpgp")
