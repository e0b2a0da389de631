"""Zero-shot accuracy of a checkpoint on pictograms, with plain transformers.

Every image of the clean renders and of a split's captures is classified among all 120 names by the cosine with the
text "a photo of a {name}.". Concepts seen in pretraining (base and novel) and the unseen ones are reported apart, in
percent. About half a minute.
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
    """Names in the order of the labels, and for each whether pretraining held it out (bool [120])."""
    with (data / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["name"] for row in rows], np.array([row["split"] == "unseen" for row in rows])


def read_images(path: Path) -> tuple[list[Image.Image], np.ndarray]:
    """Images and labels of one Parquet file of the data set."""
    table = pq.read_table(path, columns=["image", "label"])
    images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in table["image"].to_pylist()]
    return images, table["label"].to_numpy()


def unit(features: Tensor) -> Tensor:
    """Rows of length one."""
    return features / features.norm(dim=-1, keepdim=True)


class ZeroShot:
    """A CLIP model as a classifier among given names."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
        self.model = model.eval()
        tokens = tokenizer([TEMPLATE.format(name) for name in names], padding=True, return_tensors="pt")
        with torch.inference_mode():
            pooled = model.text_model(input_ids=tokens["input_ids"]).pooler_output
            self.text = unit(model.text_projection(pooled))

    def predict(self, pixels: Tensor) -> np.ndarray:
        """Labels [n] of preprocessed images [n, 3, size, size]."""
        answers = []
        with torch.inference_mode():
            for batch in pixels.split(BATCH):
                pooled = self.model.vision_model(pixel_values=batch).pooler_output
                answers.append((unit(self.model.visual_projection(pooled)) @ self.text.T).argmax(-1))
        return torch.cat(answers).numpy()


def percent(correct: np.ndarray) -> float:
    """Share of true entries in percent."""
    return round(100 * float(correct.mean()), 1)


def read_split(
    data: Path, split: str, processor: CLIPImageProcessor, styles: Sequence[str] = STYLES
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Preprocessed images and labels of one split by style."""
    prepared = {}
    for style in styles:
        images, labels = read_images(data / style / f"{split}.parquet")
        prepared[style] = (processor(images, return_tensors="pt")["pixel_values"], labels)
    return prepared


def accuracies(
    classifier: ZeroShot, images: dict[str, tuple[Tensor, np.ndarray]], unseen: np.ndarray
) -> dict[str, dict[str, float]]:
    """Accuracies in percent by group of concepts (seen, unseen) and style, "mean" being the styles' mean."""
    groups: dict[str, dict[str, float]] = {"seen": {}, "unseen": {}}
    for style, (pixels, labels) in images.items():
        correct = classifier.predict(pixels) == labels
        groups["seen"][style] = percent(correct[~unseen[labels]])
        groups["unseen"][style] = percent(correct[unseen[labels]])
    for by_style in groups.values():
        by_style["mean"] = round(sum(by_style.values()) / len(by_style), 1)
    return groups


def evaluate(checkpoint: Path, data: Path, splits: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of a checkpoint in percent by split, group of concepts and style."""
    names, unseen = read_classes(data)
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32)
    classifier = ZeroShot(model, AutoTokenizer.from_pretrained(checkpoint), names)
    processor = CLIPImageProcessor.from_pretrained(checkpoint)
    return {split: accuracies(classifier, read_split(data, split, processor), unseen) for split in splits}


def as_table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """The result as a Markdown table."""
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
        "--data", type=Path, default=ASSETS / "pictograms", help="the data set's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--splits", nargs="+", default=["clean", "test"], help="which files of each style (default: clean test)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    result = evaluate(arguments.checkpoint, arguments.data, arguments.splits)
    print(json.dumps(result, indent=2) if arguments.json else as_table(result))


if __name__ == "__main__":
    main()
