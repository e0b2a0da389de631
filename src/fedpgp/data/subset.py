"""Of a task's images those that are worth encoding, and of a source's those that decode."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.tasks import Client, Task

WORTH = 5000  # images that nobody holds: to encode the rest apart, for each seed, costs less than they do


def narrowed(task: Task) -> Task:
    """The same task with those training images alone that clients hold, where many are nobody's.

    It depends on this task alone: so a run's features have the same bits whatever runs beside it.
    """
    everybody = (*task.clients, *task.new_clients)
    used = np.unique(np.concatenate([client.train for client in everybody]))
    if len(task.train) - len(used) < WORTH:
        return task

    def moved(client: Client) -> Client:
        return replace(client, train=np.searchsorted(used, client.train))

    return replace(
        task,
        train=task.train.select(used),
        clients=tuple(map(moved, task.clients)),
        new_clients=tuple(map(moved, task.new_clients)),
    )


def part_of(dataset: ImageDataset, among: Mapping[str, ImageDataset]) -> tuple[str, NDArray[np.int64]] | None:
    """Where the images of a split are, all of them, in another selection of it: its key, and [n] indices into it."""
    wanted = dataset.numbers_of(np.arange(len(dataset)))
    for key, other in among.items():
        if other.origin == dataset.origin:
            have = other.numbers_of(np.arange(len(other)))
            if np.isin(wanted, have).all():
                return key, np.searchsorted(have, wanted)
    return None


def without(source: Source, splits: Mapping[str, ImageDataset], bad: Mapping[str, NDArray[np.int64]]) -> Source:
    """A source without some images: of splits of it, or of narrowed ones, by fingerprint, the indices of the bad."""

    def good(dataset: ImageDataset) -> ImageDataset:
        dropped = [
            splits[key].numbers_of(images)
            for key, images in bad.items()
            if key == dataset.fingerprint or (dataset is source.train and splits[key].split == "train")
        ]
        if not dropped:
            return dataset
        every = dataset.numbers_of(np.arange(len(dataset)))
        return dataset.select(np.flatnonzero(~np.isin(every, np.concatenate(dropped))))

    targets = {name: good(dataset) for name, dataset in source.targets.items()}
    return replace(source.changed(good), targets=targets)
