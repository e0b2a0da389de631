"""`fedpgp cache`: list and clear the feature cache."""

import sys
import time
from dataclasses import asdict
from typing import Annotated

import click
import typer
from rich.filesize import decimal

from fedpgp.cli.options import Cache, Json, command
from fedpgp.cli.printing import next_command, print_json, print_listing, say, typed

app = typer.Typer(help="List or clear the cache of image features.", no_args_is_help=True, suggest_commands=False)

HEADER = ["dataset", "split", "fingerprint", "kind", "images", "size", "checkpoint", "versions", "last used", "state"]


@command(app, "list")
def list_entries(directory: Cache = None, as_json: Json = False) -> None:
    """List the entries of the cache. The most recently used entry is first.

    The state of an entry is current, unfinished, stale or damaged. A run that encodes the same images completes an
    unfinished entry. A stale entry was written with other versions of the libraries, and the installed versions never
    read it. A damaged entry is written again when a run needs it. Two datasets with the same name have different
    fingerprints.

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
    next_command("cache", "clear", "--stale", *typed())


@command(app)
def clear(
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Remove only damaged entries, and entries of other versions of the libraries."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    directory: Cache = None,
) -> None:
    """Remove features from the cache. If a later run needs these features, it encodes the images again.

    Examples:
        fedpgp cache clear --stale
    """
    from fedpgp.data.cache import cache_directory, entries
    from fedpgp.data.cache import clear as remove

    place = cache_directory(directory)
    chosen = [entry for entry in entries(place) if not stale or entry.state in ("stale", "damaged")]
    what = f"{len(chosen)} entries, {decimal(sum(entry.bytes for entry in chosen))}, from {place}"
    if not chosen:
        say(f"There is nothing to remove in {place}.")
        next_command("cache", "list", *typed("stale", "yes"))
        return
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"{what} would be removed. Confirm it with --yes.")
    if not yes and not typer.confirm(f"Remove {what}?", err=True):
        return
    busy = remove(place, [entry.name for entry in chosen])
    say(f"Removed {len(chosen) - len(busy)} of {len(chosen)} entries from {place}.")
    for name in busy:
        say(f"fedpgp: Another process uses {name}, so it was not removed.")
    next_command("cache", "list", *typed("stale", "yes"))
