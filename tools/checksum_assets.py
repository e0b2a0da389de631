"""Write src/fedpgp/assets/checksums.json: the SHA-256 of every data file, which the package checks on loading.

The builders call this tool. Run it by hand after copying a checkpoint into the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from common import ASSETS, replacing

DATA_SUFFIXES = frozenset({".parquet", ".csv", ".json", ".safetensors"})
CHECKSUMS = "checksums.json"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksums_of(assets: Path) -> dict[str, str]:
    """Return the SHA-256 of every data file below `assets` by its relative path, sorted, without hidden files."""
    files = [
        path.relative_to(assets)
        for path in assets.rglob("*")
        if path.suffix in DATA_SUFFIXES and path.name != CHECKSUMS and not path.name.startswith(".")
    ]
    return {path.as_posix(): sha256(assets / path) for path in sorted(files, key=lambda path: path.as_posix())}


def write_checksums(assets: Path) -> None:
    """Write checksums.json into assets."""
    with replacing(assets / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(checksums_of(assets), indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the assets (default: %(default)s)")
    write_checksums(parser.parse_args().assets)


if __name__ == "__main__":
    main()
