"""`fedpgp cache`: what the feature cache holds, and room on the disk."""

import sys
import time
from dataclasses import asdict
from typing import Annotated

import click
import typer
from rich.filesize import decimal

from fedpgp.cli.options import Cache, Json, command
from fedpgp.cli.printing import print_json, print_listing, say

app = typer.Typer(help="List or clear the cache of image features.", no_args_is_help=True, suggest_commands=False)

HEADER = ["data set", "split", "fingerprint", "kind", "images", "size", "checkpoint", "versions", "last used", "state"]


@command(app, "list")
def list_entries(directory: Cache = None, as_json: Json = False) -> None:
    """Print what is kept, the last used first.

    State: current; unfinished (a run that encodes the same goes on there); stale (made by other versions of the
    libraries, used by none of these); damaged (made again by the run that needs it). Two data sets of one name differ
    in the fingerprint of their images.

    Examples:
        fedpgp cache list
    """
    from fedpgp.data.cache import cache_directory, entries

    place = cache_directory(directory)
    kept = entries(place)
    if as_json:
        print_json([asdict(entry) for entry in kept])
        return
    rows = [
        (
            entry.data,
            entry.split + (f", view {entry.view}" if entry.view else ""),
            entry.fingerprint[:8],
            entry.kind,
            str(entry.images),
            decimal(entry.bytes),
            entry.checkpoint[:8],
            entry.versions,
            time.strftime("%Y-%m-%d", time.localtime(entry.last_used)),
            entry.state,
        )
        for entry in kept
    ]
    if rows:
        print_listing(HEADER, rows, right=("images", "size"))
    say(f"{len(kept)} entries, {decimal(sum(entry.bytes for entry in kept))} in {place}")


@command(app)
def clear(
    stale: Annotated[
        bool, typer.Option("--stale", help="Only what these versions of the libraries cannot use, and damaged files.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    directory: Cache = None,
) -> None:
    """Remove kept features; a later run computes what it needs again.

    Examples:
        fedpgp cache clear --stale
    """
    from fedpgp.data.cache import cache_directory, entries
    from fedpgp.data.cache import clear as remove

    place = cache_directory(directory)
    chosen = [entry for entry in entries(place) if not stale or entry.state in ("stale", "damaged")]
    what = f"{len(chosen)} entries, {decimal(sum(entry.bytes for entry in chosen))}, from {place}"
    if not chosen:
        say(f"nothing to remove in {place}")
        return
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"would remove {what}: say --yes to do it")
    if not yes and not typer.confirm(f"Remove {what}?", err=True):
        return
    busy = remove(place, [entry.name for entry in chosen])
    say(f"removed {len(chosen) - len(busy)} of {len(chosen)} entries from {place}")
    for name in busy:
        say(f"fedpgp: {name} is in use by another process and was left")
