"""Helpers of all tools: paths, tables, files that are written and then renamed, and progress lines."""

from __future__ import annotations

import argparse
import csv
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
ASSETS = ROOT / "src" / "fedpgp" / "assets"
PACKAGES = TOOLS / "node_modules" / "@iconify-json"  # icon sets that `npm install --prefix tools` installs
BUILD = ROOT / "build"  # caches and training states, not in git

STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji", "fluent-emoji-flat", "fxemoji")
SPLITS = ("base", "novel", "unseen")  # splits of the concepts, in the order of their labels


@dataclass(frozen=True)
class Concept:
    """One class of pictograms; `icons` maps each evaluation style to the key of the icon in that set."""

    name: str
    group: str
    split: str
    icons: dict[str, str]


@dataclass(frozen=True)
class IconSet:
    """One row of sets.csv."""

    name: str
    version: str
    licence: str
    author: str
    role: str


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_concepts() -> list[Concept]:
    """Return the 120 concepts in the order of their labels: base, novel, unseen, each in the order of concepts.csv."""
    concepts = [
        Concept(row["concept"], row["group"], row["split"], {style: row[style] for style in STYLES})
        for row in read_table(TOOLS / "concepts.csv")
    ]
    return sorted(concepts, key=lambda concept: SPLITS.index(concept.split))  # sorted() is stable


def read_sets() -> dict[str, IconSet]:
    """Return the icon sets of sets.csv by name."""
    rows = read_table(TOOLS / "sets.csv")
    return {r["set"]: IconSet(r["set"], r["version"], r["licence"], r["author"], r["role"]) for r in rows}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the directory of `path`; rename it to `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(path: Path, header: list[str], rows: list[list[object]]) -> None:
    """Write a CSV file with Unix line ends."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def progress(what: str, total: int) -> Callable[[int], None]:
    """Return a function that takes the number of finished items and prints a line at most every five seconds."""
    start = last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < 5:
            return
        last = now
        left = (now - start) / max(done, 1) * (total - done)
        print(f"{what}: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)

    return report


def add_running_options(parser: argparse.ArgumentParser, threads: int, check_every: int, save_every: int) -> None:
    """Add the options of a training run that do not change its result."""
    running = parser.add_argument_group("running")
    running.add_argument("--threads", type=int, default=threads, help="default: %(default)s")
    running.add_argument("--print-every", type=int, default=50, help="steps between lines (default: %(default)s)")
    running.add_argument(
        "--check-every", type=int, default=check_every, help="steps between checks (default: %(default)s)"
    )
    running.add_argument(
        "--save-every", type=int, default=save_every, help="steps between saved states (default: %(default)s)"
    )


def stop_on_signals() -> list[bool]:
    """Return a list that gets an entry at SIGINT or SIGTERM, so that a run can save its state and end."""
    stopping: list[bool] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.append(True))
    return stopping
