"""Image files -> pixels: decoded and preprocessed, in this process or ahead of the encoder in others."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.spawn import get_preparation_data
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fedpgp.data.augment import random_view
from fedpgp.data.pictures import reason
from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError
from fedpgp.processes import ENDED, context, leave_ctrl_c

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

WORTH_PROCESSES = 10.0  # seconds of decoding: starting processes takes five, and they take cores from the encoder
CENTRE = 0  # the number of the centre crop; random views count from 1


class Prepared(NamedTuple):
    """pixels: [B, 3, H, W]; faults: index of an image -> why it is blank; unreadable: the same where not the image but
    the disk or the network is at fault, so that it must not be remembered."""

    pixels: NDArray[np.float32]
    faults: dict[int, str]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Preparation(Dataset[Prepared]):
    """Decodes and preprocesses one view of some images; it can be pickled, for other processes."""

    dataset: ImageDataset
    processor: "CLIPImageProcessor"
    size: tuple[int, int]
    view: int

    def __getitem__(self, batch: range) -> Prepared:
        faults: dict[int, str] = {}
        unreadable: dict[int, str] = {}
        pictures = []
        for index in batch:
            try:
                picture = self.dataset.image(index)
            except MemoryError:
                raise
            except Exception as error:  # decoders raise whatever a damaged file leads them to
                whose = unreadable if getattr(error, "errno", None) is not None else faults
                whose[index] = reason(error)
                picture = Image.new("RGB", self.size)
            pictures.append(
                picture
                if self.view == CENTRE
                else random_view(picture, self.size, self.dataset.number(index), self.view)
            )
        whole: dict[str, Any] = {} if self.view == CENTRE else {"do_resize": False, "do_center_crop": False}
        pixels = self.processor(images=pictures, return_tensors="np", **whole)["pixel_values"]
        return Prepared(pixels, faults, unreadable)


def prepare(preparation: Preparation, batches: list[range], workers: int) -> Iterator[Prepared]:
    """Every batch in order; the first, which is timed, in this process, the rest in others where that pays."""
    if not batches:
        return
    started = time.perf_counter()
    first = preparation[batches[0]]
    seconds = time.perf_counter() - started
    yield first
    rest = batches[1:]
    if workers == 1 or seconds * len(rest) < WORTH_PROCESSES:
        yield from (preparation[batch] for batch in rest)
        return
    loader = DataLoader(
        preparation,
        batch_size=None,
        sampler=rest,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=context(),
        worker_init_fn=_start,
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        raise _ended() from error


def check_not_a_worker(workers: int) -> None:
    """Raises DataError where a new process runs an unguarded script once more: it would wait for its parent's lock."""
    if workers > 1:
        try:
            get_preparation_data("worker")
        except RuntimeError as error:
            raise _ended() from error


def _ended() -> DataError:
    return DataError(f"a process that decodes images {ENDED}")


def _start(worker: int) -> None:
    leave_ctrl_c()


def _as_it_is(batch: Any) -> Any:
    """Tensors would go through shared memory, of which containers have little; arrays go through a pipe."""
    return batch
