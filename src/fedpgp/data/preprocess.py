"""Image files -> pixels: decoded and preprocessed beside the encoder, in threads or in other processes."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fedpgp.runtime.processes import ENDED, context, leave_ctrl_c

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

    from fedpgp.backbone.open_clip_processor import OpenClipProcessor

WORTH_PROCESSES = 10.0  # seconds of decoding: starting processes takes five, and they take cores from the encoder
FEW = 4  # threads: of 16 that decode, each waits for the others' Python, and all are no faster than 4
AHEAD = 4  # items for each thread, so that none waits while others are saved
CENTRE = 0  # the number of the centre crop; random views count from 1
Item = TypeVar("Item")
Done = TypeVar("Done")


class PreparedImages(NamedTuple):
    """pixels: [B, 3, H, W]; faults: index of an image -> why it is blank; unreadable: the same where not the image but
    the disk or the network is at fault, so that it must not be remembered."""

    pixels: NDArray[np.float32]
    faults: dict[int, str]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Preparation(Dataset[PreparedImages]):
    """Decodes and preprocesses one view of some images; it can be pickled, for other processes."""

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
            except Exception as error:  # decoders raise whatever a damaged file leads them to
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
) -> Iterator[Done]:
    """What `finish`, the encoder, makes of every batch, in order; the bits do not depend on how.

    Where PyTorch has few threads, as many batches are at work, each in one of its own from file to feature: nothing is
    started, and no operation is waited for. Where it has many, they share the operations, and processes decode ahead,
    if there are several workers and it pays.
    """
    if torch.get_num_threads() <= FEW:
        yield from in_threads(lambda batch: finish(preparation[batch]), batches, torch.get_num_threads())
    else:
        yield from map(finish, _prepared(preparation, batches, workers))


def in_threads(work: Callable[[Item], Done], items: Iterable[Item], threads: int) -> Iterator[Done]:
    """What `work` makes of every item, in order; in each of the threads PyTorch has one thread."""
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
        torch.set_num_threads(before)  # theirs is what threads that are started later would begin with


def _prepared(preparation: Preparation, batches: Sequence[range], workers: int) -> Iterator[PreparedImages]:
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
