"""The feature cache on disk: verified files, shards of unfinished entries, and one lock for each entry."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from rich.filesize import decimal
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpgp.errors import OutputError
from fedpgp.runtime.files import apply_umask

FORMAT = "3"  # version of the files and of image reading; features of another version are computed again
OURS = re.compile(r"([\w.-]+-[0-9a-f]{32})\.(safetensors|writing|lock|shards)")


@dataclass(frozen=True)
class Kept:
    """Stored features of some images.

    Attributes
    ----------
    features
        [n, …], mapped from the file.
    undecodable
        The reason why an image has no features, by the index of the image.
    """

    features: Tensor
    undecodable: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class CacheEntry:
    """The place of the features of one split.

    Attributes
    ----------
    directory
        The directory of the cache.
    origin
        Everything that determines the bits of the features. The name of the file is derived from it.
    """

    directory: Path
    origin: Mapping[str, str]

    @property
    def file(self) -> Path:
        key = hashlib.sha256(json.dumps(self.origin, sort_keys=True).encode()).hexdigest()[:32]
        name = re.sub(r"[^\w.-]", "-", f"{self.origin['data']}-{self.origin['split']}")
        return self.directory / f"{name}-{key}.safetensors"

    @property
    def shards(self) -> Path:
        """The directory of the finished shards of an unfinished entry."""
        return self.file.with_suffix(".shards")

    def load(self, rows: range | None = None) -> Kept | None:
        """Return all features, or the shard of these rows; None if the file is missing or damaged."""
        file, origin = self._place(rows)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata, features = opened.metadata() or {}, opened.get_tensor("features")
            stated = metadata.pop("sha256", None)
            undecodable = metadata.get("undecodable", "")
            if metadata != {**origin, "undecodable": undecodable}:
                return None
            with file.open("rb") as raw:  # in blocks, so that the mapped features do not fill the memory
                raw.seek(8 + int.from_bytes(raw.read(8), "little"))  # skip the header of the safetensors file
                digest = hashlib.file_digest(raw, lambda: _begin(metadata, features))
            if digest.hexdigest() != stated:
                return None
            with suppress(OSError):  # the file may belong to another user or be on a read-only disk
                os.utime(file)  # record the time of the last use
        except (SafetensorError, OSError):
            return None
        return Kept(features, {int(index): why for index, why in json.loads(undecodable).items()})

    def save(self, kept: Kept, rows: range | None = None) -> None:
        """Write the shard of these rows, or all features, which replace the shards.

        Raises
        ------
        OutputError
            If the files cannot be written.
        """
        file, origin = self._place(rows)
        metadata = {**origin, "undecodable": json.dumps(dict(kept.undecodable))}
        features = kept.features.cpu().contiguous()
        digest = _begin(metadata, features)
        digest.update(features.numpy().data)
        written = self.file.with_suffix(".writing")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features}, written, {**metadata, "sha256": digest.hexdigest()})
            apply_umask(written)
            os.replace(written, file)
        except (OSError, SafetensorError) as error:
            written.unlink(missing_ok=True)
            raise _unwritable(self.directory, error) from error
        if rows is None:
            shutil.rmtree(self.shards, ignore_errors=True)

    @contextmanager
    def locked(self, notice: Callable[[str], None]) -> Iterator[None]:
        """Let only one process encode an entry at a time.

        The operating system releases the lock of a killed process.
        """
        lock = FileLock(self.file.with_suffix(".lock"))
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notice(f"waiting for another process that is encoding the {self.origin['split']} images")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise _unwritable(self.directory, error) from error
        try:
            yield
        finally:
            lock.release()

    def _place(self, rows: range | None) -> tuple[Path, Mapping[str, str]]:
        if rows is None:
            return self.file, self.origin
        shard = self.shards / f"{rows.start:09}.safetensors"
        return shard, {**self.origin, "rows": f"{rows.start}:{rows.stop}"}


def cache_directory(given: Path | str | None) -> Path:
    """Return the directory of the feature cache: the given one, or the default directory of the user."""
    return Path(given) if given else Path(platformdirs.user_cache_dir("fedpgp")) / "features"


def check_cache(directory: Path) -> None:
    """Raise OutputError, before any work, if no features could be stored in `directory` later.

    A read-only directory with features may contain all that a run needs. If it lacks some, `CacheEntry.locked` raises
    the error.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory):
            pass
    except OSError as error:
        if not any(directory.glob("*.safetensors")):
            raise _unwritable(directory, error) from error


def check_room(sizes: Mapping[CacheEntry, int], directory: Path) -> None:
    """Raise OutputError if the disk has too little space for some entries.

    For a moment, the disk holds the shards of an entry and the complete file that replaces them.

    Parameters
    ----------
    sizes
        The size in bytes of each entry that will be written.
    directory
        The directory of the cache.
    """
    have = sum(shard.stat().st_size for entry in sizes for shard in entry.shards.glob("*.safetensors"))
    needed, free = sum(sizes.values()) + max(sizes.values()) - have, shutil.disk_usage(directory).free
    if needed > free:
        raise OutputError(
            f"the feature cache needs {decimal(needed)}, {decimal(sum(sizes.values()))} of it permanently, but only"
            f" {decimal(free)} are free on this disk",
            where=str(directory),
            remedy="Free disk space, choose another directory with --cache-dir, or store less with"
            " --set data.token_precision=float16 or fewer images",
        )


@cache  # reading the metadata of a package takes a millisecond, for each split of each run
def versions() -> str:
    """Return the versions of the libraries that determine the bits of the features."""
    return " ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "pillow"))


@dataclass(frozen=True)
class Listed:
    """Description of a cache entry.

    Attributes
    ----------
    state
        "current", "unfinished", "stale" (written by other versions) or "damaged".
    fingerprint
        The fingerprint of the images. It distinguishes two datasets of one name.
    """

    name: str
    data: str
    split: str
    view: int
    kind: str
    images: int
    bytes: int
    checkpoint: str
    versions: str
    last_used: float
    state: str
    fingerprint: str


def entries(directory: Path) -> list[Listed]:
    """Return all entries of a cache, the last used first.

    Checksums are not verified here, but only when a run reads the features.

    Raises
    ------
    OutputError
        If the directory cannot be read.
    """
    try:
        matches = [OURS.fullmatch(path.name) for path in directory.iterdir()] if directory.exists() else []
    except OSError as error:
        raise OutputError(
            f"the feature cache cannot be read: {error}",
            where=str(directory),
            remedy="Make the directory readable, or choose another one with --cache-dir",
        ) from error
    listed = [_describe(directory, name) for name in sorted({match[1] for match in matches if match})]
    return sorted((entry for entry in listed if entry.bytes), key=lambda entry: -entry.last_used)


def clear(directory: Path, names: list[str]) -> list[str]:
    """Remove entries, and return the names of the entries that a process is encoding, which are not removed.

    Only files that this library wrote are touched.

    Raises
    ------
    OutputError
        If a file cannot be removed.
    """
    busy = []
    for name in names:
        try:
            with FileLock(directory / f"{name}.lock").acquire(timeout=0):
                if (directory / f"{name}.shards").exists():
                    shutil.rmtree(directory / f"{name}.shards")
                for suffix in ("safetensors", "writing", "lock"):
                    (directory / f"{name}.{suffix}").unlink(missing_ok=True)
        except Timeout:
            busy.append(name)
        except OSError as error:
            raise OutputError(
                f"cannot be removed: {error}", where=f"{directory / name}.*", remedy="Remove these files by hand"
            ) from error
    return busy


def _describe(directory: Path, name: str) -> Listed:
    file = directory / f"{name}.safetensors"
    shards = sorted((directory / f"{name}.shards").glob("*.safetensors"))
    present = [path for path in (file, *shards, directory / f"{name}.writing") if path.exists()]
    headers = [header for path in present[: 1 if file.exists() else None] if (header := _header(path)) is not None]
    metadata = headers[0][0] if headers else {}
    if not headers:
        state = "damaged"
    elif metadata.get("versions") != versions() or metadata.get("format") != FORMAT:
        state = "stale"
    else:
        state = "current" if file.exists() else "unfinished"
    return Listed(
        name=name,
        data=metadata.get("data", "?"),
        split=metadata.get("split", "?"),
        versions=metadata.get("versions", "?"),
        view=int(metadata.get("view", 0)),
        kind=" ".join(metadata.get(key, default) for key, default in (("kind", "pooled"), ("precision", ""))).strip(),
        images=sum(count for _, count in headers),
        bytes=sum(path.stat().st_size for path in present),
        checkpoint=metadata.get("encoder", "?"),
        last_used=max((path.stat().st_mtime for path in present), default=0.0),
        state=state,
        fingerprint=metadata.get("images", "?"),
    )


def _header(file: Path) -> tuple[dict[str, str], int] | None:
    """Return the metadata and the number of images of a file, or None if it has no features."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, opened.get_slice("features").get_shape()[0]
    except (SafetensorError, OSError):
        return None


def _begin(metadata: Mapping[str, str], features: Tensor) -> "hashlib._Hash":
    """Return a SHA-256 of everything but the values of the features."""
    return hashlib.sha256(f"{json.dumps(metadata, sort_keys=True)} {features.dtype} {list(features.shape)}".encode())


def _unwritable(directory: Path, error: Exception) -> OutputError:
    return OutputError(
        f"the feature cache cannot be written: {error}",
        where=str(directory),
        remedy="Free disk space there, or choose another directory with --cache-dir; features that are already encoded"
        " are kept",
    )
