"""The dataset, the checkpoint and the tokenizer that ship with the package, verified before use.

This package may import only errors. NOTICE names their sources: see `pictograms` and `pictoclip` there.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from fedpgp.errors import DataError

DIRECTORY = Path(__file__).parent


def checksums(name: str) -> dict[str, str]:
    """Return the SHA-256 of every file of an asset, by its path in the package's asset directory."""
    try:
        listed = json.loads((DIRECTORY / "checksums.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "the file is missing or damaged",
            where=str(DIRECTORY / "checksums.json"),
            remedy="Install fedpgp again",
        ) from error
    return {path: digest for path, digest in sorted(listed.items()) if path.startswith(name + "/")}


def verified(name: str, without: Collection[str] = ()) -> Path:
    """Return the directory of an asset after comparing the checksums of its files.

    Parameters
    ----------
    name
        Name of the asset.
    without
        Names of files that are not needed and may be missing.

    Raises
    ------
    DataError
        If a file is missing or damaged.
    """
    for path, expected in checksums(name).items():
        file = DIRECTORY / path
        if file.name in without:
            continue
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            state = "damaged (its SHA-256 differs)" if file.is_file() else "missing"
            raise DataError(f"the file is {state}", where=str(file), remedy="Install fedpgp again")
    return DIRECTORY / name
