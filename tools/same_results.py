"""Check whether two result directories of fedpgp compare, run or ablate are the same except for times.

    python tools/same_results.py ONE OTHER

Compares the content of all files without seconds and provenance.json. Prints the files that differ, and exits with 1.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

TIMES = {"seconds", "seconds_training", "seconds_evaluation"}
UNLIKE = {"provenance.json"}  # command, platform and start time
TABLES = {".md", ".tex"}  # tables with a column of seconds


def content(path: Path) -> Any:
    """Return the compared content of a file."""
    if path.name in UNLIKE:
        return None
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [timeless(row) for row in csv.DictReader(file)]
    if path.suffix in TABLES:
        return [without_seconds(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return path.read_bytes()


def timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key not in TIMES}
    return [timeless(value) for value in found] if isinstance(found, list) else found


def without_seconds(line: str) -> str:
    """Return a row of a table without its last cell, a whole number of seconds."""
    return re.sub(r"[|&] *\d+ *(\||\\\\)$", "", line)


def differing(one: Path, other: Path) -> list[str]:
    """Return the files that exist only in one directory or that differ."""
    files = [{str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()} for root in (one, other)]
    names = sorted({*files[0], *files[1]})
    return [
        name
        for name in names
        if name not in files[0] or name not in files[1] or content(files[0][name]) != content(files[1][name])
    ]


def main() -> int:
    one, other = map(Path, sys.argv[1:])
    for root in (one, other):
        if not root.is_dir():
            sys.exit(f"{root} is not a directory")
    found = differing(one, other)
    print("\n".join(found) if found else f"{one} and {other} are the same except for times")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
