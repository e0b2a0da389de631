"""Decode and preprocess image files into pixels while the encoder works, in threads or in other processes."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.spawn import get_preparation_data
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fedpgp.data.augment import random_view
from fedpgp.data.decode import reason, unheard
from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError
from fedpgp.runtime.processes import context, leave_ctrl_c

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

    from fedpgp.backbone.open_clip_processor import OpenClipProcessor

WORTH_PROCESSES = 10.0  # seconds of decoding: starting processes takes 5 s, and they take cores from the encoder
FEW = 4  # threads: 16 that decode wait for each other's Python code and are not faster than 4
AHEAD = 4  # items for each thread, so that no thread waits while results are saved
CENTRE = 0  # number of the centre crop; random views are numbered from 1
Item = TypeVar("Item")
Done = TypeVar("Done")


class PreparedImages(NamedTuple):
    """A batch of preprocessed images.

    Attributes
    ----------
    pixels
        [B, 3, H, W].
    faults
        The reason why an image is blank, by its index.
    unreadable
        The same if the disk or the network is at fault and not the image, so that the fault must not be stored.
    """

    pixels: NDArray[np.float32]
    faults: dict[int, str]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Preparation(Dataset[PreparedImages]):
    """Decode and preprocess one view of some images. Objects can be pickled for other processes."""

    dataset: ImageDataset
    processor: "CLIPImageProcessor | OpenClipProcessor"
    size: tuple[int, int]
    view: int

    def __getitem__(self, batch: range) -> PreparedImages:
        faults: dict[int, str] = {}
        unreadable: dict[int, str] = {}
        pictures = []
        for index in batch:
            try:
                picture = self.dataset.image(index)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file can make a decoder raise anything
                whose = unreadable if getattr(error, "errno", None) is not None else faults
                whose[index] = reason(error)
                picture = Image.new("RGB", self.size)
            if self.view != CENTRE:
                picture = random_view(picture, self.size, self.dataset.number(index), self.view)
            pictures.append(picture)
        whole: dict[str, Any] = {} if self.view == CENTRE else {"do_resize": False, "do_center_crop": False}
        pixels = self.processor(images=pictures, return_tensors="np", **whole)["pixel_values"]
        return PreparedImages(pixels, faults, unreadable)


def each(
    preparation: Preparation, finish: Callable[[PreparedImages], Done], batches: Sequence[range], workers: int
) -> Generator[Done, None, None]:
    """Yield what `finish`, the encoder, makes of every batch, in order; the bits do not depend on the strategy.

    If PyTorch has few threads, each thread takes one batch from file to feature: no process is started, and no thread
    waits for another. If PyTorch has many threads, they share the operations of one batch, and processes decode the
    next batches if there are several workers and enough work.
    """
    if torch.get_num_threads() <= FEW:
        yield from in_threads(lambda batch: finish(preparation[batch]), batches, torch.get_num_threads())
    else:
        yield from map(finish, _prepared(preparation, batches, workers))


def in_threads(work: Callable[[Item], Done], items: Iterable[Item], threads: int) -> Iterator[Done]:
    """Yield what `work` makes of every item, in order; PyTorch has one thread in each of the threads."""
    before = torch.get_num_threads()
    waiting: deque[Future[Done]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with unheard():
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # else later threads would start with the setting of the pool


def _prepared(preparation: Preparation, batches: Sequence[range], workers: int) -> Iterator[PreparedImages]:
    """Yield every batch in order: the first, timed, from this process, the rest from others if that is faster."""
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
        sampler=list(rest),
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
    """Raise DataError if a new process runs an unguarded script again.

    The process would wait for the lock of its parent.
    """
    if workers > 1:
        try:
            get_preparation_data("worker")
        except RuntimeError as error:
            raise _ended() from error


def _ended() -> DataError:
    return DataError(
        "a process that decodes images ended before its work was done",
        remedy="Set workers to 1, or free memory; a script that uses more than one worker needs"
        " `if __name__ == '__main__':`",
    )


def _start(worker: int) -> None:
    leave_ctrl_c()


def _as_it_is(batch: Any) -> Any:
    """Return a batch unchanged: arrays use a pipe, but tensors would use shared memory, which containers lack."""
    return batch
