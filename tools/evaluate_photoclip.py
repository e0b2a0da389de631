"""Measure the zero-shot accuracy of a checkpoint in OpenCLIP's layout on Caltech 101, with plain open_clip.

The tool prints percentages with CoOp's split: the accuracy among the first 50 classes (base), among the last 50 classes
(novel) and among all 100 classes. It prints the last figure also for the class names that are names of ImageNet
classes, and for the other class names. It needs open_clip_torch, timm, WordNet 3.0 and the photographs, and takes about
a minute.

Choose settings by the validation split, which is the default, never by the test split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from captions import PLAIN_TEMPLATE
from common import ASSETS, BUILD
from photoclip_space import download, read_imagenet
from wordnet import DEBIAN_FOLDER, read_wordnet

BATCH = 64


def read_split(photographs: Path, split: str) -> tuple[list[Path], np.ndarray, list[str]]:
    """Return the paths and labels of the photographs of a split, and the class names."""
    entries = json.loads((photographs / "split_zhou_Caltech101.json").read_text(encoding="utf-8"))
    names = {label: name.replace("_", " ") for _, label, name in entries["train"]}
    paths = [photographs / "101_ObjectCategories" / path for path, _, _ in entries[split]]
    return paths, np.array([label for _, label, _ in entries[split]]), [names[label] for label in sorted(names)]


def class_names(wheels: Path, wordnet: Path) -> set[str]:
    """Return all names of ImageNet classes in lower case."""
    download(wheels)
    imagenet, nouns = read_imagenet(wheels), read_wordnet(wordnet)
    words = [word for offset in imagenet.offsets for word in nouns.synsets[offset].words]
    return {name.lower() for name in [*words, *imagenet.names]}


class ZeroShot:
    """A checkpoint that open_clip loaded."""

    def __init__(self, checkpoint: Path) -> None:
        name = f"local-dir:{checkpoint.resolve()}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def text_features(self, names: list[str], templates: list[str]) -> Tensor:
        """Return features [names, d] of unit length: the mean over the templates."""
        with torch.inference_mode():
            features = [
                self.model.encode_text(self.tokenizer([template.format(name) for name in names]), normalize=True)
                for template in templates
            ]
        return functional.normalize(torch.stack(features).mean(0), dim=1)

    def image_features(self, paths: list[Path]) -> Tensor:
        """Return features [n, d] of photographs, of unit length."""
        batches = []
        for start in range(0, len(paths), BATCH):
            pixels = [self.preprocess(Image.open(path)) for path in paths[start : start + BATCH]]
            with torch.inference_mode():
                batches.append(self.model.encode_image(torch.stack(pixels), normalize=True))
        return torch.cat(batches)


def percent(correct: Tensor) -> float:
    """Return the share of true entries in percent."""
    return round(100 * correct.float().mean().item(), 1)


def accuracies(images: Tensor, texts: Tensor, labels: np.ndarray, is_class: np.ndarray) -> dict[str, float]:
    """Return accuracies in percent.

    Parameters
    ----------
    images, texts
        Features [n, d] and [classes, d] of unit length.
    labels
        int [n].
    is_class
        bool [classes]: whether the name is a name of an ImageNet class.
    """
    own, half = torch.from_numpy(labels), (len(texts) + 1) // 2
    base = own < half
    correct = (images @ texts.T).argmax(1) == own
    seen = torch.from_numpy(is_class)[own]
    return {
        "base": percent((images[base] @ texts[:half].T).argmax(1) == own[base]),
        "novel": percent((images[~base] @ texts[half:].T).argmax(1) == own[~base] - half),
        "all": percent(correct),
        "imagenet_names": percent(correct[seen]),
        "other_names": percent(correct[~seen]),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", default=ASSETS / "photoclip", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--photographs",
        type=Path,
        required=True,
        help="folder with 101_ObjectCategories and split_zhou_Caltech101.json",
    )
    parser.add_argument("--split", choices=["val", "test"], default="val", help="default: %(default)s")
    parser.add_argument(
        "--templates", nargs="+", default=[PLAIN_TEMPLATE], help="templates whose features are averaged (default: one)"
    )
    parser.add_argument("--wheels", type=Path, default=BUILD / "wheels", help="default: %(default)s")
    parser.add_argument("--wordnet", type=Path, default=DEBIAN_FOLDER, help="default: %(default)s")
    arguments = parser.parse_args()
    paths, labels, names = read_split(arguments.photographs, arguments.split)
    known = class_names(arguments.wheels, arguments.wordnet)
    is_class = np.array([name.lower() in known for name in names])
    classifier = ZeroShot(arguments.checkpoint)
    texts = classifier.text_features(names, arguments.templates)
    print(json.dumps(accuracies(classifier.image_features(paths), texts, labels, is_class)))


if __name__ == "__main__":
    main()
