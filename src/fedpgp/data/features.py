"""Image features: computed once for each checkpoint, preprocessing and image, and stored on disk."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor

from fedpgp.backbone.general_image import AnyImageEncoder
from fedpgp.backbone.image import PATCHES, POOLED
from fedpgp.data.cache import FORMAT, CacheEntry, Kept, check_room, versions
from fedpgp.data.preprocess import CENTRE, Preparation, PreparedImages, check_not_a_worker, each
from fedpgp.data.sources import ImageDataset
from fedpgp.errors import CheckpointError, DataError

BATCH = 16  # images; each thread holds this number in memory
SHARD = 256  # images between two savings; a killed process loses at most this number

Progress = Callable[[str, int, int, str], None]
Notice = Callable[[str], None]


def split_features(
    encoder: AnyImageEncoder,
    datasets: Sequence[ImageDataset],
    directory: Path,
    *,
    augmented_views: int = 1,
    skip_bad_images: bool = False,
    workers: int = 1,
    progress: Progress = lambda *_: None,
    notice: Notice = lambda _: None,
) -> tuple[dict[str, Tensor], dict[str, NDArray[np.int64]]]:
    """Return the features of every image of some splits, from the cache in `directory` or computed.

    Parameters
    ----------
    encoder
        The image encoder.
    datasets
        The splits.
    directory
        The directory of the feature cache.
    augmented_views
        K > 1 computes the features of K random crops of each training image instead of the centre crop.
    skip_bad_images
        Continue if an image does not decode.
    workers
        The number of processes that may decode images for the encoder if there are many cores. The bits of the result
        depend neither on it nor on the number of threads. A script with more than one worker needs
        `if __name__ == "__main__":`.
    progress
        Called with a text, the number of finished images, the number of all images and a remark.
    notice
        Called with each message for the user.

    Returns
    -------
    features
        [n, D] in the order of the images, or [n, K, D] for training splits with K > 1 views; by the fingerprint of
        the split.
    bad
        The indices of the images that do not decode, whose features are zero; by the fingerprint of each split that
        has such images.

    Raises
    ------
    DataError
        If an image does not decode.
    OutputError
        If the directory cannot be written.
    """
    view_of = partial(
        ViewFeatures, encoder, skip_bad_images=skip_bad_images, workers=workers, progress=progress, notice=notice
    )
    features: dict[str, Tensor] = {}
    bad: dict[str, NDArray[np.int64]] = {}
    wanted = encoded = 0
    for dataset in datasets:
        views = [view_of(dataset, directory, view=view).load() for view in views_of(dataset.split, augmented_views)]
        wanted, encoded = wanted + len(dataset) * len(views), encoded + sum(new for _, new in views)
        values = views[0][0].features if len(views) == 1 else torch.stack([kept.features for kept, _ in views], dim=1)
        features[dataset.fingerprint] = values.to(encoder.device)
        dropped = sorted(set().union(*(kept.undecodable for kept, _ in views)))
        if dropped:
            bad[dataset.fingerprint] = np.array(dropped)
            names = "; ".join(dataset.describe(index) for index in dropped)
            notice(f"dropped {len(dropped)} of {len(dataset)} {dataset.split} images, which do not decode: {names}")
    if datasets:
        from_cache = f"{encoded} encoded, {wanted - encoded} from the cache"
        where = "the package" if all(dataset.features is not None for dataset in datasets) else "the cache"
        progress("image features", wanted, wanted, from_cache if encoded else f"no image encoded: all from {where}")
    return features, bad


def check_stored(
    dataset: ImageDataset, encoder: AnyImageEncoder, kind: str = POOLED, view: int = CENTRE, reader: str = "a method"
) -> None:
    """Raise DataError if the images of a split are needed but only their features are available.

    Parameters
    ----------
    dataset
        The split.
    encoder
        The image encoder that would read the images.
    kind
        The kind of features, as in `ImageEncoder.encode`.
    view
        The number of the view.
    reader
        The name of what reads this kind of features.
    """
    stored = dataset.features
    if stored is None:
        return
    if encoder.fingerprint != stored.encoder:
        need = "another image tower or precision needs"
        remedy = f"use --backbone {stored.checkpoint} with --set backbone.precision=float32"
    elif kind != POOLED:
        what = "patches of the images" if kind == PATCHES else "states of the image tower"
        need, remedy = f"{reader} reads {what}, which needs", f"leave out {reader}"
    elif view != CENTRE:
        need, remedy = "data.augmented_views above 1 needs", "use --set data.augmented_views=1"
    else:
        return
    raise DataError(
        f"{need} the images, but only their features under {stored.checkpoint} are available",
        where=dataset.name,
        remedy=f"Get the images (`fedpgp data get {dataset.name}` prints the steps), or {remedy}",
    )


class SplitPart(NamedTuple):
    """Images of a split for which a method reads more than the pooled features.

    Attributes
    ----------
    dataset
        The split.
    used
        The indices of the images, ascending. All of them decode.
    kind
        The kind of features, as in `ImageEncoder.encode`.
    views
        The numbers of the views that are stored.
    """

    dataset: ImageDataset
    used: NDArray[np.int64]
    kind: str
    views: Sequence[int]


class Tokens(NamedTuple):
    """Stored patch features or image tower states of a split.

    Attributes
    ----------
    kept
        [u, …] on the CPU, mapped from a file, for each view.
    places
        [n] the row of `kept` for each image of the split, or −1.
    """

    kept: Sequence[Tensor]
    places: Tensor


def token_features(
    encoder: AnyImageEncoder,
    parts: Sequence[SplitPart],
    directory: Path,
    *,
    half: bool,
    workers: int = 1,
    progress: Progress = lambda *_: None,
    notice: Notice = lambda _: None,
) -> list[Tokens]:
    """Return the patch features or image tower states of the images that are used.

    The number of bytes that will be written is announced first. The other parameters are as in `split_features`.

    Parameters
    ----------
    half
        Store the features in float16.

    Raises
    ------
    OutputError
        If the disk has too little space for all of the files; nothing is written then.
    """
    view_of = partial(ViewFeatures, encoder, half=half, workers=workers, progress=progress, notice=notice)
    views = []
    for part in parts:
        chosen = part.dataset.select(part.used)
        views.append([view_of(chosen, directory, kind=part.kind, view=view) for view in part.views])
    sizes = {new.entry: new.size for of_part in views for new in of_part if not new.entry.file.exists()}
    if sizes:
        check_room(sizes, directory)
        whats = {"patch features" if part.kind == PATCHES else "states of the image tower" for part in parts}
        notice(f"the feature cache will grow by {decimal(sum(sizes.values()))}: {' and '.join(sorted(whats))}")
    tokens = []
    for part, of_part in zip(parts, views, strict=True):
        places = torch.full((len(part.dataset),), -1)
        places[torch.from_numpy(part.used)] = torch.arange(len(part.used))
        tokens.append(Tokens([view.load()[0].features for view in of_part], places))
    return tokens


def views_of(split: str, augmented_views: int) -> Sequence[int]:
    """Return the numbers of the views of a split: the centre crop, or K > 1 random crops for training."""
    return range(1, augmented_views + 1) if split == "train" and augmented_views > 1 else [CENTRE]


@dataclass(frozen=True)
class ViewFeatures:
    """The features of one view of every image of a split, from the cache or computed.

    The other attributes are as in `split_features`.

    Attributes
    ----------
    kind
        The kind of features, as in `ImageEncoder.encode`.
    half
        Store features other than pooled ones in float16.
    """

    encoder: AnyImageEncoder
    dataset: ImageDataset
    directory: Path
    kind: str = POOLED
    half: bool = False
    view: int = CENTRE
    skip_bad_images: bool = False
    workers: int = 1
    progress: Progress = lambda *_: None
    notice: Notice = lambda _: None

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half and self.kind != POOLED else self.encoder.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.dataset), *self.encoder.shape(self.kind)

    @property
    def size(self) -> int:
        """The size of the features in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def entry(self) -> CacheEntry:
        origin = {
            "format": FORMAT,
            "data": self.dataset.name,
            "split": self.dataset.split,
            "images": self.dataset.fingerprint,
            "view": str(self.view),
            "encoder": self.encoder.fingerprint,
            "device": self.encoder.device.type,
            "versions": versions(),
        }
        if self.kind != POOLED:
            origin |= {"kind": self.kind, "precision": str(self.dtype).removeprefix("torch.")}
        return CacheEntry(self.directory, origin)

    def load(self) -> tuple[Kept, int]:
        """Return the features, from the cache or computed, and the number of images that had to be encoded.

        The features are on the CPU, and zero for an image that does not decode. A truncated or altered file is
        computed again. If the images are not available, their stored features are returned.

        Raises
        ------
        DataError
            If an image is needed that is not available; also as in `split_features`.
        """
        if self.dataset.features is not None:
            check_stored(self.dataset, self.encoder, self.kind, self.view)
            return Kept(F.normalize(self.dataset.features.values.to(self.dtype), dim=-1), {}), 0
        encoded = 0
        kept = self.entry.load()
        if kept is None:
            check_not_a_worker(self.workers)
            with self.entry.locked(self.notice):
                kept = self.entry.load()  # another process may just have finished it
                if kept is None:
                    if self.entry.file.exists():
                        self.notice(f"feature cache {self.entry.file} is damaged: computing it again")
                    made, encoded = self._encode(torch.zeros(self.shape, dtype=self.dtype))
                    self.entry.save(made)
                    kept = self.entry.load() or made  # mapped, so that the system can free the memory
        if kept.undecodable and not self.skip_bad_images:
            raise self._undecodable(kept.undecodable)
        return kept, encoded

    def _encode(self, features: Tensor) -> tuple[Kept, int]:
        """Fill in `features` from the shards of an earlier attempt, and encode the other images."""
        total = len(self.dataset)
        undecodable: dict[int, str] = {}
        batches: list[range] = []
        for start in range(0, total, SHARD):
            rows = range(start, min(start + SHARD, total))
            shard = self.entry.load(rows)
            if shard is None:
                batches += [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
            else:
                features[rows.start : rows.stop] = shard.features
                undecodable |= shard.undecodable
        new = sum(map(len, batches))
        done = total - new
        what = f"encoding {self.dataset.split} images" + (f", view {self.view}" if self.view != CENTRE else "")
        self.progress(what, done, total, "")
        started = time.perf_counter()
        preparation = Preparation(self.dataset, self.encoder.processor, self.encoder.size, self.view)
        # An accelerator takes one batch at a time.
        accelerator = nullcontext() if self.encoder.device.type == "cpu" else Lock()

        def encoded(prepared: PreparedImages) -> tuple[Tensor, dict[int, str], dict[int, str]]:
            with accelerator:
                encodings = self.encoder.encode(torch.from_numpy(prepared.pixels), self.kind).to(features)
            return encodings, prepared.faults, prepared.unreadable

        with closing(each(preparation, encoded, batches, self.workers)) as results:
            for batch, (encodings, faults, unreadable) in zip(batches, results, strict=True):
                if unreadable:
                    image = min(unreadable)
                    raise DataError(
                        f"the image cannot be read: {unreadable[image]}",
                        where=self.dataset.describe(image),
                        remedy="Make its file readable",
                    )
                if faults and not self.skip_bad_images:
                    raise self._undecodable(faults)
                if not torch.isfinite(encodings).all():
                    row = int((~torch.isfinite(encodings)).flatten(1).any(dim=1).nonzero()[0])
                    half = self.dtype == torch.float16
                    precision = "data.token_precision=full" if half else "backbone.precision=float32"
                    raise CheckpointError(
                        "the checkpoint computes a feature that is not finite",
                        where=self.dataset.describe(batch[row]),
                        remedy=f"Use --set {precision}, or another checkpoint",
                    )
                features[batch.start : batch.stop] = encodings
                features[list(faults)] = 0
                undecodable |= faults
                if batch.stop % SHARD == 0 or batch.stop == total:
                    rows = range((batch.stop - 1) // SHARD * SHARD, batch.stop)
                    inside = {index: why for index, why in undecodable.items() if index in rows}
                    self.entry.save(Kept(features[rows.start : rows.stop], inside), rows)
                done += len(batch)
                rate = (done - total + new) / (time.perf_counter() - started)
                self.progress(what, done, total, f"{rate:.0f} images/s")
        return Kept(features, undecodable), new

    def _undecodable(self, faults: Mapping[int, str]) -> DataError:
        first = min(faults)
        remedy = "Fix its file, or leave out all such images with --skip-bad-images"
        return DataError(
            f"the image does not decode: {faults[first]}", where=self.dataset.describe(first), remedy=remedy
        )
