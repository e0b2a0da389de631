"""The feature cache on disk: verified files, the shards of what is not finished, and a lock for each."""

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

FORMAT = "3"  # of what is written, and of how images are read: features of another are computed again
OURS = re.compile(r"([\w.-]+-[0-9a-f]{32})\.(safetensors|writing|lock|shards)")


@dataclass(frozen=True)
class Kept:
    """What is kept of some images [n, …], mapped from its file; undecodable: index of an image -> why it has none."""

    features: Tensor
    undecodable: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class CacheEntry:
    """The place of one split's features. origin: all that decides their bits; the name of the file follows from it."""

    directory: Path
    origin: Mapping[str, str]

    @property
    def file(self) -> Path:
        key = hashlib.sha256(json.dumps(self.origin, sort_keys=True).encode()).hexdigest()[:32]
        name = re.sub(r"[^\w.-]", "-", f"{self.origin['data']}-{self.origin['split']}")
        return self.directory / f"{name}-{key}.safetensors"

    @property
    def shards(self) -> Path:
        """The directory of what is encoded so far of an unfinished entry."""
        return self.file.with_suffix(".shards")

    def load(self, rows: range | None = None) -> Kept | None:
        """The whole, or the shard of these rows; None if it is absent or does not hold what it should."""
        file, origin = self._place(rows)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata, features = opened.metadata() or {}, opened.get_tensor("features")
            stated = metadata.pop("sha256", None)
            undecodable = metadata.get("undecodable", "")
            if metadata != {**origin, "undecodable": undecodable}:
                return None
            with file.open("rb") as raw:  # in blocks: the mapped features are not read into memory for it
                raw.seek(8 + int.from_bytes(raw.read(8), "little"))  # behind the header of a safetensors file
                digest = hashlib.file_digest(raw, lambda: _begin(metadata, features))
            if digest.hexdigest() != stated:
                return None
            with suppress(OSError):  # a file of another user, or on a disk that is read only
                os.utime(file)  # when it was last used
        except (SafetensorError, OSError):
            return None
        return Kept(features, {int(index): why for index, why in json.loads(undecodable).items()})

    def save(self, kept: Kept, rows: range | None = None) -> None:
        """Writes the shard of these rows, or the whole in the place of the shards; raises OutputError if it cannot."""
        file, origin = self._place(rows)
        metadata = {**origin, "undecodable": json.dumps(dict(kept.undecodable))}
        features = kept.features.cpu().contiguous()
        digest = _begin(metadata, features)
        digest.update(features.numpy().data)
        written = self.file.with_suffix(".writing")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features}, written, {**metadata, "sha256": digest.hexdigest()})
            os.replace(written, file)
        except (OSError, SafetensorError) as error:
            written.unlink(missing_ok=True)
            raise _unwritable(self.directory, error) from error
        if rows is None:
            shutil.rmtree(self.shards, ignore_errors=True)

    @contextmanager
    def locked(self, notice: Callable[[str], None]) -> Iterator[None]:
        """Only one process encodes an entry at a time; the system frees the lock of one that was killed."""
        lock = FileLock(self.file.with_suffix(".lock"))
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notice(f"another process encodes the {self.origin['split']} images: waiting for it")
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
    """Where features are kept: the given directory, or that of the user."""
    return Path(given) if given else Path(platformdirs.user_cache_dir("fedpgp")) / "features"


def check_cache(directory: Path) -> None:
    """Raises OutputError if features could not be kept in `directory` later; called before any work.

    A directory that holds features and is read only may have all that a run needs: where it lacks some, `locked` says
    so.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory):
            pass
    except OSError as error:
        if not any(directory.glob("*.safetensors")):
            raise _unwritable(directory, error) from error


def check_room(sizes: Mapping[CacheEntry, int], directory: Path) -> None:
    """Raises OutputError where the disk has no room for all of some entries that are to be written, in bytes.

    While the whole of an entry is put in the place of its shards, the disk holds both.
    """
    have = sum(shard.stat().st_size for entry in sizes for shard in entry.shards.glob("*.safetensors"))
    needed, free = sum(sizes.values()) + max(sizes.values()) - have, shutil.disk_usage(directory).free
    if needed > free:
        raise OutputError(
            f"the feature cache needs {decimal(needed)} on the disk of {directory}, {decimal(sum(sizes.values()))} of"
            f" them to stay, and {decimal(free)} are free: make room, name another directory with --cache-dir, or keep"
            " less, with data.token_precision = float16 or fewer images"
        )


@cache  # reading a package's metadata takes a millisecond, for every split of every run
def versions() -> str:
    """The libraries that decide the features' bits."""
    return " ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "pillow"))


@dataclass(frozen=True)
class Listed:
    """What is known of an entry. state: "current", "unfinished", "stale" (of other versions) or "damaged".

    fingerprint: of the images, which tells apart two datasets of one name.
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
    """All entries of a cache, the last used first. Nothing is verified by checksum here; reading for a run does that.

    Raises OutputError if the directory cannot be read.
    """
    try:
        matches = [OURS.fullmatch(path.name) for path in directory.iterdir()] if directory.exists() else []
    except OSError as error:
        raise OutputError(f"feature cache {directory} cannot be read: {error}; set another --cache-dir") from error
    listed = [_describe(directory, name) for name in sorted({match[1] for match in matches if match})]
    return sorted((entry for entry in listed if entry.bytes), key=lambda entry: -entry.last_used)


def clear(directory: Path, names: list[str]) -> list[str]:
    """Removes entries, and returns the names of those that are left because a process is encoding them.

    Only files that this library wrote are touched. Raises OutputError if one cannot be removed.
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
            raise OutputError(f"{directory / name}.* cannot be removed: {error}; remove it by hand") from error
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
    """Metadata and number of images of a file, or None if it holds no features."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, opened.get_slice("features").get_shape()[0]
    except (SafetensorError, OSError):
        return None


def _begin(metadata: Mapping[str, str], features: Tensor) -> "hashlib._Hash":
    """A SHA-256 that has read everything but the numbers."""
    return hashlib.sha256(f"{json.dumps(metadata, sort_keys=True)} {features.dtype} {list(features.shape)}".encode())


def _unwritable(directory: Path, error: Exception) -> OutputError:
    return OutputError(
        f"the feature cache cannot be written to {directory}: {error}; make room there or name another directory with"
        " --cache-dir: what is encoded so far is kept"
    )
