"""`fedpgp join`: add a new client to a finished federation."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click
import typer

import fedpgp
from fedpgp.cli.option_groups import OutputOptions, with_options
from fedpgp.cli.options import Changes, DataSource, Device, SkipBadImages
from fedpgp.cli.printing import Session, print_result


@with_options(OutputOptions)
def join(
    run: Annotated[Path, typer.Option("--from", help="Directory of a finished run.")],
    data: DataSource = None,
    change: Changes = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Number of training images per class; 0 means all.")] = 0,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            help="Epochs used to fit the private part.",
            show_default="federation.join_epochs of the run",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
    device: Device = None,
    skip_bad_images: SkipBadImages = False,
    *,
    options: OutputOptions,
) -> None:
    """Join a finished federation: fit the private part to a few images of your own, on this machine only.

    The shared part does not change, and no data leaves this machine. The command writes a run directory with one
    client.

    Examples:
        fedpgp join --from fedpgp-runs/fedpgp-seed-0 --data /srv/photos --shots 8 -o mine
    """
    if data is None:
        raise click.UsageError("Missing option '--data'. Add --data with the directory of your images.")
    directory = options.directory(f"join-{run.name}")
    fit = partial(fedpgp.join, run, data, changes=change or (), shots=shots, epochs=epochs, seed=seed, device=device)
    execution: dict[str, Any] = {"cache": options.cache, "skip_bad_images": skip_bad_images}
    with Session(directory, options.quiet) as progress:
        joined = fit(output=directory, force=options.force, reporter=progress, **execution)
    following = ("predict", directory, data, "--client", 0)
    print_result(fedpgp.Comparison([joined]), directory, options.as_json, following)
