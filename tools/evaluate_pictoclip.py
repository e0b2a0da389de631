"""Measure the zero-shot accuracy of a checkpoint on pictograms with plain transformers.

Every clean render and every capture of a split is classified among all 120 names by the cosine with the text
"a photo of a {name}.". Accuracies are in percent, separately for concepts that were in pretraining (base and novel) and
for unseen concepts. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

from common import ASSETS, STYLES

TEMPLATE = "a photo of a {}."
BATCH = 256


def read_classes(data: Path) -> tuple[list[str], np.ndarray]:
    """Return the names in the order of the labels, and whether pretraining held them out (bool [120])."""
    with (data / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["name"] for row in rows], np.array([row["split"] == "unseen" for row in rows])


def read_images(path: Path) -> tuple[list[Image.Image], np.ndarray]:
    """Return the images and labels of one Parquet file of the dataset."""
    table = pq.read_table(path, columns=["image", "label"])
    images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in table["image"].to_pylist()]
    return images, table["label"].to_numpy()


def unit(features: Tensor) -> Tensor:
    """Return rows of unit length."""
    return features / features.norm(dim=-1, keepdim=True)


class ZeroShot:
    """Classifier of a CLIP model among given names."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
        self.model = model.eval()
        tokens = tokenizer([TEMPLATE.format(name) for name in names], padding=True, return_tensors="pt")
        with torch.inference_mode():
            pooled = model.text_model(input_ids=tokens["input_ids"]).pooler_output
            self.text = unit(model.text_projection(pooled))

    def predict(self, pixels: Tensor) -> np.ndarray:
        """Return labels [n] of preprocessed images [n, 3, size, size]."""
        answers = []
        with torch.inference_mode():
            for batch in pixels.split(BATCH):
                pooled = self.model.vision_model(pixel_values=batch).pooler_output
                answers.append((unit(self.model.visual_projection(pooled)) @ self.text.T).argmax(-1))
        return torch.cat(answers).numpy()


def percent(correct: np.ndarray) -> float:
    """Return the share of true entries in percent."""
    return round(100 * float(correct.mean()), 1)


def read_split(
    data: Path, split: str, processor: CLIPImageProcessor, styles: Sequence[str] = STYLES
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Return preprocessed images and labels of one split by style."""
    prepared = {}
    for style in styles:
        images, labels = read_images(data / style / f"{split}.parquet")
        prepared[style] = (processor(images, return_tensors="pt")["pixel_values"], labels)
    return prepared


def accuracies(
    classifier: ZeroShot, images: dict[str, tuple[Tensor, np.ndarray]], unseen: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return accuracies in percent by group of concepts (seen, unseen) and style; "mean" is the mean of the styles."""
    groups: dict[str, dict[str, float]] = {"seen": {}, "unseen": {}}
    for style, (pixels, labels) in images.items():
        correct = classifier.predict(pixels) == labels
        groups["seen"][style] = percent(correct[~unseen[labels]])
        groups["unseen"][style] = percent(correct[unseen[labels]])
    for by_style in groups.values():
        by_style["mean"] = round(sum(by_style.values()) / len(by_style), 1)
    return groups


def evaluate(checkpoint: Path, data: Path, splits: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return accuracies of a checkpoint in percent by split, group of concepts and style."""
    names, unseen = read_classes(data)
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32)
    classifier = ZeroShot(model, AutoTokenizer.from_pretrained(checkpoint), names)
    processor = CLIPImageProcessor.from_pretrained(checkpoint)
    return {split: accuracies(classifier, read_split(data, split, processor), unseen) for split in splits}


def as_table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the result as a Markdown table."""
    columns = ["mean", *STYLES]
    lines = [f"| images | concepts | {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    for split, groups in result.items():
        for group, by_style in groups.items():
            figures = " | ".join(f"{by_style[column]:.1f}" for column in columns)
            lines.append(f"| {split} | {group} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", default=ASSETS / "pictoclip", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, default=ASSETS / "pictograms", help="folder of the dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--splits", nargs="+", default=["clean", "test"], help="files of each style (default: clean test)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    result = evaluate(arguments.checkpoint, arguments.data, arguments.splits)
    print(json.dumps(result, indent=2) if arguments.json else as_table(result))


if __name__ == "__main__":
    main()
