"""Select the images of a task that must be encoded, and the images of a source that decode."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.tasks import Client, Task

WORTH = 5000  # images without a client; if there are fewer, encoding all images once for all seeds is cheaper


def narrowed(task: Task) -> Task:
    """Return the same task with only the training images that clients hold, if many images belong to no client.

    The result depends on this task only, so the features of a run have the same bits whatever runs at the same time.
    """
    holders = (*task.clients, *task.new_clients)
    used = np.unique(np.concatenate([client.train for client in holders]))
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
    """Find a selection of the same split that contains all images of `dataset`.

    Parameters
    ----------
    dataset
        The images to find.
    among
        The selections, by any key.

    Returns
    -------
    The key of the selection and [n] indices of the images in it, or None if no selection contains them.
    """
    wanted = dataset.numbers_of(np.arange(len(dataset)))
    for key, other in among.items():
        if other.origin == dataset.origin:
            have = other.numbers_of(np.arange(len(other)))
            if np.isin(wanted, have).all():
                return key, np.searchsorted(have, wanted)
    return None


def without(source: Source, splits: Mapping[str, ImageDataset], bad: Mapping[str, NDArray[np.int64]]) -> Source:
    """Return a source without some images.

    Parameters
    ----------
    source
        The source.
    splits
        Its splits, or selections of them, by fingerprint.
    bad
        The indices of the images to leave out, by the same fingerprints.
    """

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
