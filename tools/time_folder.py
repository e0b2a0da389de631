"""Measure the speed and memory of decoding and encoding a folder of JPEGs, separately and together.

Without --data, the folder has pictograms as JPEGs.

Prints images/s of decoding in one process, of encoding on one core and on all cores, and of both as in a run. The last
speed is also printed as a share of the speed that the cores allow: the seconds of one core for both, divided by the
number of cores. The last line but one uses processor time instead of elapsed time, so it is also valid on a busy
machine.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fedpgp.backbone import load_backbone
from fedpgp.data.features import BATCH, ViewFeatures
from fedpgp.data.preprocess import CENTRE, Preparation
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source, pictograms
from PIL import Image


def write(directory: Path, count: int, size: int) -> None:
    """Write pictograms as JPEGs, in a folder for each class."""
    images = pictograms.read().train
    for i in range(count):
        chosen = i % len(images)
        file = directory / images.class_names[images.labels[chosen]] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        images.image(chosen).resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with a folder of images for each class")
    parser.add_argument("--backbone", default="pictoclip")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, default=300, help="side of the pictograms in pixels")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        data = options.data or Path(place) / "images"
        if options.data is None:
            write(data, options.images, options.size)
        dataset = load_source(DataConfig(source=str(data))).train
        dataset = dataset.select(np.linspace(0, len(dataset) - 1, min(options.images, len(dataset))).astype(np.int64))
        encoder = load_backbone(options.backbone).image
        preparation = Preparation(dataset, encoder.processor, encoder.size, CENTRE)
        some = [range(start, start + BATCH) for start in range(0, min(8 * BATCH, len(dataset) - BATCH), BATCH)]
        pixels = [torch.from_numpy(preparation[batch].pixels) for batch in some]
        count = len(some) * BATCH

        started = time.perf_counter()
        for batch in some:
            preparation[batch]
        decoding = (time.perf_counter() - started) / count
        encoding = {}
        for threads in (1, cores):
            torch.set_num_threads(threads)
            encoder.encode(pixels[0])
            started = time.perf_counter()
            for batch in pixels:
                encoder.encode(batch)
            encoding[threads] = (time.perf_counter() - started) / count
            print(f"encoding on {threads} cores: {1 / encoding[threads]:.0f} images/s")
        print(f"decoding in one process: {1 / decoding:.0f} images/s")
        torch.set_num_threads(cores)
        started, busy = time.perf_counter(), os.times()
        ViewFeatures(encoder, dataset, Path(place) / "cache", workers=cores).load()
        together = (time.perf_counter() - started) / len(dataset)
        computing = sum(after - before for after, before in zip(os.times()[:4], busy[:4], strict=True)) / len(dataset)
        allowed = (decoding + encoding[1]) / cores
        print(
            f"together: {1 / together:.0f} images/s, {allowed / together:.0%} of the {1 / allowed:.0f} that"
            " the cores allow"
        )
        print(
            f"together: {1000 * computing:.1f} ms of a core for each image, so {cores / computing:.0f} images/s on an"
            f" idle machine; this run had {computing / together / cores:.0%} of the {cores} cores"
        )
        mine, others = (
            resource.getrusage(who).ru_maxrss / 2**10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(f"{len(dataset)} images: peak memory {mine:.0f} MiB, largest decoding process {others:.0f} MiB")


if __name__ == "__main__":
    main()
