"""Image files -> pixels, decoded and preprocessed, several batches at once."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedpgp.data.augment import random_view
from fedpgp.data.pictures import reason, unheard
from fedpgp.data.sources import ImageDataset

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

CENTRE = 0  # the number of the centre crop; random views count from 1
Done = TypeVar("Done")


class Prepared(NamedTuple):
    """pixels: [B, 3, H, W]; faults: index of an image -> why it is blank; unreadable: the same where not the image but
    the disk or the network is at fault, so that it must not be remembered."""

    pixels: NDArray[np.float32]
    faults: dict[int, str]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Preparation:
    """Decodes and preprocesses one view of some images."""

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


def each(work: Callable[[range], Done], batches: Sequence[range]) -> Iterator[Done]:
    """What `work` makes of every batch, in order; as many are at work as PyTorch has threads, each with one of these.

    Decoders and PyTorch's operations let other threads run. Threads that share each operation instead would wait while
    a batch is decoded, and for each other in operations that are small.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[Done]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with unheard():
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # theirs is what threads that are started later would begin with
