"""`fedpgp join`: a new client of a finished federation."""

from functools import partial
from pathlib import Path
from typing import Annotated

import click
import typer

import fedpgp
from fedpgp.cli.options import Changes, DataSource, Device, OutputOptions, with_options
from fedpgp.cli.printing import Session, print_result


@with_options(OutputOptions)
def join(
    run: Annotated[Path, typer.Option("--from", help="A finished run's directory.")],
    data: DataSource = None,
    change: Changes = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Training images of each class; 0: all.")] = 0,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Epochs used to fit the private part.", show_default="as the run says"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
    device: Device = None,
    *,
    options: OutputOptions,
) -> None:
    """Join a finished federation: fit the private part to some images of your own, on this machine alone.

    The shared part stays as it is, and nothing is sent anywhere. Writes a run directory with one client.

    Examples:
        fedpgp join --from fedpgp-runs/fedpgp-seed-0 --data /srv/photos --shots 8 -o mine
    """
    if data is None:
        raise click.UsageError("Missing option '--data', where the images are")
    directory = options.directory(f"join-{run.name}")
    fit = partial(fedpgp.join, run, data, changes=change or (), shots=shots, epochs=epochs, seed=seed, device=device)
    with Session(directory, options.quiet) as progress:
        joined = fit(output=directory, force=options.force, cache=options.cache, reporter=progress)
    print_result(fedpgp.Comparison([joined]), directory, options.as_json)
