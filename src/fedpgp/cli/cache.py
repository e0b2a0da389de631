"""`fedpgp cache`: what the feature cache holds, and room on the disk."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from fedpgp.cli.printing import err, out

app = typer.Typer(help="List or clear the cache of image features.", no_args_is_help=True, suggest_commands=False)

Directory = Annotated[
    Path | None, typer.Option("--cache-dir", help="The cache; by default in the user's cache directory.")
]


@app.command("list", epilog="Example: [bold]fedpgp cache list[/]")
def list_entries(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of the table.")] = False,
) -> None:
    """Print what is kept, the last used first.

    State: current; unfinished (a run that encodes the same goes on there); stale (made by other versions of the
    libraries, used by none of these); damaged (made again by the run that needs it). Two data sets of one name differ
    in the fingerprint of their images.
    """
    from fedpgp.data.cache import cache_directory, entries

    place = cache_directory(directory)
    found = entries(place)
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found]))
        return
    listing = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    names = (
        "data set",
        "split",
        "fingerprint",
        "kind",
        "images",
        "size",
        "checkpoint",
        "versions",
        "last used",
        "state",
    )
    for name in names:
        listing.add_column(name, justify="right" if name in ("images", "size") else "left", overflow="fold")
    for entry in found:
        listing.add_row(
            escape(entry.data),
            entry.split + (f", view {entry.view}" if entry.view else ""),
            entry.fingerprint[:8],
            escape(entry.kind),
            str(entry.images),
            decimal(entry.bytes),
            entry.checkpoint[:8],
            escape(entry.versions),
            time.strftime("%Y-%m-%d", time.localtime(entry.last_used)),
            entry.state,
        )
    if found:
        out.print(listing)
    err.print(f"{len(found)} entries, {decimal(sum(entry.bytes for entry in found))} in {place}", markup=False)


@app.command(epilog="Example: [bold]fedpgp cache clear --stale[/]")
def clear(
    stale: Annotated[
        bool, typer.Option("--stale", help="Only what these versions of the libraries cannot use, and damaged files.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    directory: Directory = None,
) -> None:
    """Remove kept features; a later run computes what it needs again."""
    from fedpgp.data.cache import cache_directory, entries
    from fedpgp.data.cache import clear as remove

    place = cache_directory(directory)
    chosen = [entry for entry in entries(place) if not stale or entry.state in ("stale", "damaged")]
    size = decimal(sum(entry.bytes for entry in chosen))
    if not chosen:
        err.print(f"nothing to remove in {place}", markup=False)
        return
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"would remove {len(chosen)} entries, {size}, from {place}: say --yes to do it")
    if not yes and not typer.confirm(f"Remove {len(chosen)} entries, {size}, from {place}?", err=True):
        return
    busy = remove(place, [entry.name for entry in chosen])
    err.print(f"removed {len(chosen) - len(busy)} of {len(chosen)} entries from {place}", markup=False)
    for name in busy:
        err.print(f"fedpgp: {name} is in use by another process and was left", markup=False)
