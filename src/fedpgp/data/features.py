"""Image features, computed once per checkpoint and split, and kept on disk."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.data.sources import ImageDataset
from fedpgp.errors import OutputError

BATCH = 64


def image_features(
    backbone: Backbone,
    dataset: ImageDataset,
    directory: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_rebuild: Callable[[Path], None] = lambda file: None,
) -> Tensor:
    """Features [n, D] of every image of a split, in its order, from the cache in `directory` or computed and kept.

    A file that is truncated, altered or of another shape is reported to `on_rebuild` and computed again.
    Raises OutputError if the directory cannot be written.
    """
    key = hashlib.sha256(repr(_origin(backbone, dataset)).encode()).hexdigest()
    file = directory / f"{dataset.name}-{dataset.split}-{key[:32]}.safetensors"
    if file.exists():
        kept = _read(file, backbone, dataset)
        if kept is not None:
            return kept
        on_rebuild(file)
    features = _encode(backbone, dataset, on_progress)
    _write(file, features, backbone, dataset)
    return features


def check_cache(directory: Path) -> None:
    """Raises OutputError if features could not be kept in `directory` later; called before any work."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory):
            pass
    except OSError as error:
        raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: Exception) -> OutputError:
    return OutputError(f"the feature cache cannot be written to {directory}: {error}; name another with --cache-dir")


def _encode(backbone: Backbone, dataset: ImageDataset, on_progress: Callable[[int, int], None]) -> Tensor:
    parts = []
    on_progress(0, len(dataset))
    for start in range(0, len(dataset), BATCH):
        indices = range(start, min(start + BATCH, len(dataset)))
        parts.append(backbone.image([dataset.image(i) for i in indices]))
        on_progress(indices.stop, len(dataset))
    return torch.cat(parts).clone()  # a clone made here, unlike what the encoder returns, can take part in autograd


def _origin(backbone: Backbone, dataset: ImageDataset) -> dict[str, str]:
    """All that decides the features' bits."""
    versions = " ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "pillow"))
    return {
        "backbone": backbone.fingerprint,
        "images": dataset.fingerprint,
        "device": backbone.logit_scale.device.type,
        "versions": versions,
    }


def _checksum(features: Tensor) -> str:
    return hashlib.sha256(features.cpu().contiguous().numpy().tobytes()).hexdigest()


def _read(file: Path, backbone: Backbone, dataset: ImageDataset) -> Tensor | None:
    """The kept features, or None where the file does not hold what it should."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata, features = opened.metadata(), opened.get_tensor("features")
    except (SafetensorError, OSError):
        return None
    expected = _origin(backbone, dataset) | {"sha256": _checksum(features)}
    return features.to(backbone.logit_scale.device) if metadata == expected else None


def _write(file: Path, features: Tensor, backbone: Backbone, dataset: ImageDataset) -> None:
    metadata = _origin(backbone, dataset) | {"sha256": _checksum(features)}
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            written = Path(scratch) / file.name
            save_file({"features": features.cpu().contiguous()}, written, metadata)
            os.replace(written, file)
    except (OSError, SafetensorError) as error:
        raise _unwritable(file.parent, error) from error
