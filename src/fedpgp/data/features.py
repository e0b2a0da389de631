"""What is kept of images: computed once per checkpoint, preprocessing and image, and kept on disk."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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

BATCH = 16  # images: every thread has as many in memory
SHARD = 256  # images between two savings: what a killed process loses at most

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
    """Features [n, D] of every image of some splits, in their order, from the cache in `directory` or computed.

    Both results are by the splits' fingerprints; the second has, of those that have any, the indices of the images that
    do not decode, whose features are zero. augmented_views: K > 1 gives training splits [n, K, D], features of K random
    crops instead of the centre's. skip_bad_images: go on where an image does not decode.
    workers: processes that may decode ahead of the encoder, where there are many cores; any number, and any number of
    threads, gives the same bits. More than one needs `if __name__ == "__main__":`.

    Raises DataError for an image that does not decode, OutputError if the directory cannot be written.
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
    """Raise DataError if the images of a dataset are needed, and only their features are here.

    kind: of `ImageEncoder.encode`; view: its number; reader: what reads this kind of features.
    """
    stored = dataset.features
    if stored is None:
        return
    if encoder.fingerprint != stored.encoder:
        need = "another image tower or precision needs"
        remedy = f"take --backbone {stored.checkpoint} with precision float32"
    elif kind != POOLED:
        what = "patches of the images" if kind == PATCHES else "states of the image tower"
        need, remedy = f"{reader} reads {what}, which needs", f"leave out {reader}"
    elif view != CENTRE:
        need, remedy = "data.augmented_views above 1 needs", "set data.augmented_views to 1"
    else:
        return
    raise DataError(
        f"{need} the images of {dataset.name}, and only their features under {stored.checkpoint} are here: get the"
        f" images (fedpgp data get {dataset.name} says where), or {remedy}"
    )


class SplitPart(NamedTuple):
    """Images of a split of which more is kept than a feature. used: ascending; all of them decode.

    kind: of `ImageEncoder.encode`; views: the numbers of the views that are kept.
    """

    dataset: ImageDataset
    used: NDArray[np.int64]
    kind: str
    views: Sequence[int]


class Tokens(NamedTuple):
    """kept: [u, …] on the CPU, mapped from a file, for each view; places: [n] in it of the split's images, or −1."""

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
    """What methods read beside one feature of each image, of those images alone that are used.

    Says first how much will be written. Raises OutputError, before anything is, where the disk has no room for all of
    it. The rest as in `split_features`.
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
        notice(f"the feature cache will hold {decimal(sum(sizes.values()))} more: {' and '.join(sorted(whats))}")
    tokens = []
    for part, of_part in zip(parts, views, strict=True):
        places = torch.full((len(part.dataset),), -1)
        places[torch.from_numpy(part.used)] = torch.arange(len(part.used))
        tokens.append(Tokens([view.load()[0].features for view in of_part], places))
    return tokens


def views_of(split: str, augmented_views: int) -> Sequence[int]:
    """The numbers of the views of a split's images: the centre crop, or for training K > 1 random crops."""
    return range(1, augmented_views + 1) if split == "train" and augmented_views > 1 else [CENTRE]


@dataclass(frozen=True)
class ViewFeatures:
    """What is kept of one view of every image of a split: in the cache, or to be computed.

    kind: of `ImageEncoder.encode`; half: keep what is more than a feature in float16. The rest as in `split_features`.
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
        """In bytes."""
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
        """What is kept, from the cache or computed, and how many images had to be encoded for it.

        What is kept is on the CPU; it is zero for an image that does not decode. A file that is truncated or altered is
        made again. Of images that are not here, their stored features are given. Errors as in `split_features`, and
        DataError where an image that is not here is needed.
        """
        if self.dataset.features is not None:
            check_stored(self.dataset, self.encoder, self.kind, self.view)
            return Kept(F.normalize(self.dataset.features.values.to(self.dtype), dim=-1), {}), 0
        encoded = 0
        kept = self.entry.load()
        if kept is None:
            check_not_a_worker(self.workers)
            with self.entry.locked(self.notice):
                kept = self.entry.load()  # another process may just have made it
                if kept is None:
                    if self.entry.file.exists():
                        self.notice(f"feature cache {self.entry.file} is damaged: computing it again")
                    made, encoded = self._encode(torch.zeros(self.shape, dtype=self.dtype))
                    self.entry.save(made)
                    kept = self.entry.load() or made  # mapped, so that the system can take the memory back
        if kept.undecodable and not self.skip_bad_images:
            raise self._undecodable(kept.undecodable)
        return kept, encoded

    def _encode(self, features: Tensor) -> tuple[Kept, int]:
        """Fills `features` in: from shards of an earlier attempt, and by encoding the rest."""
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
        accelerator = nullcontext() if self.encoder.device.type == "cpu" else Lock()  # which takes one batch at a time

        def encoded(prepared: PreparedImages) -> tuple[Tensor, dict[int, str], dict[int, str]]:
            with accelerator:
                encodings = self.encoder.encode(torch.from_numpy(prepared.pixels), self.kind).to(features)
            return encodings, prepared.faults, prepared.unreadable

        results = each(preparation, encoded, batches, self.workers)
        for batch, (encodings, faults, unreadable) in zip(batches, results, strict=True):
            if unreadable:
                image = min(unreadable)
                raise DataError(f"{self.dataset.describe(image)} cannot be read: {unreadable[image]}; make it readable")
            if faults and not self.skip_bad_images:
                raise self._undecodable(faults)
            if not torch.isfinite(encodings).all():
                row = int((~torch.isfinite(encodings)).flatten(1).any(dim=1).nonzero()[0])
                remedy = "data.token_precision full" if self.dtype == torch.float16 else "precision float32"
                raise CheckpointError(
                    f"the checkpoint gives a feature that is not finite for {self.dataset.describe(batch[row])}:"
                    f" choose {remedy}, or another checkpoint"
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
        remedy = "fix it, or drop all such images with --skip-bad-images"
        return DataError(f"{self.dataset.describe(first)} does not decode: {faults[first]}; {remedy}")
