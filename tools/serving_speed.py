"""Measure the speed of classification compared with the image encoder, and the cost of an ONNX export of ViT-B/16.

    python tools/serving_speed.py

The checkpoint with the shape of ViT-B/16 has random weights. Nothing is trained.
"""

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fedpgp import assets
from fedpgp.backbone import Backbone, load_backbone
from fedpgp.backbone.convert import standard_processor
from fedpgp.backbone.files import TOKENIZER
from fedpgp.data.preprocess import in_threads
from fedpgp.methods import METHODS, Params
from fedpgp.methods.base import normal
from fedpgp.serving.classifier import BATCH, Classifier
from fedpgp.serving.export import _onnx
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

CLASSES = tuple(f"thing {i}" for i in range(50))
PAIRS = 5


def classifier(backbone: Backbone) -> Classifier:
    context = normal(torch.Generator().manual_seed(0), 16, backbone.token_width)
    return Classifier(METHODS["promptfl"](), Params({"p_G": context}, {}), backbone, CLASSES, ("a photo of a {}.",))


def vit_b_16(directory: Path) -> Backbone:
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"patch_size": 16}, text_config={"eos_token_id": 49407, "bos_token_id": 49406})
    CLIPModel(config).save_pretrained(directory)
    standard_processor(224).save_pretrained(directory)
    AutoTokenizer.from_pretrained(assets.verified(TOKENIZER)).save_pretrained(directory)
    return load_backbone(str(directory))


def ratio(model: Classifier, files: list[Path]) -> list[float]:
    """Return images per second from file to probabilities, divided by images per second of the encoder on pixels."""
    read = model.read()
    pictures = [Image.open(file).convert("RGB") for file in files]
    pixels = model.backbone.image.processor(images=pictures, return_tensors="pt")["pixel_values"]
    batches = pixels.split(BATCH)
    found = []
    for _ in range(PAIRS):
        began = time.perf_counter()
        list(in_threads(model.backbone.image.encode, batches, torch.get_num_threads()))
        bare = time.perf_counter() - began
        began = time.perf_counter()
        list(model.stream(files, read))
        found.append(bare / (time.perf_counter() - began))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        rng = np.random.default_rng(0)
        for name, size, count, backbone in (
            ("pictoclip", 48, 960, load_backbone("pictoclip")),
            ("ViT-B/16", 500, 64, vit_b_16(directory / "vit")),
        ):
            files = []
            for i in range(count):
                noise = rng.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
                files.append(directory / f"{name[:3]}-{i}.jpg")
                Image.fromarray(noise).resize((size, size)).save(files[-1], quality=90)
            model = classifier(backbone)
            ratios = ratio(model, files)
            print(f"{name}: {', '.join(f'{r:.3f}' for r in ratios)} of the images per second of the encoder")
        run: Any = SimpleNamespace(
            method="promptfl", seed=0, provenance={"checkpoint": ""},
            config=SimpleNamespace(backbone=SimpleNamespace(checkpoint="ViT-B/16's shape")),
        )  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        _onnx(run, replace(model, client=None), model.read(), directory)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = (directory / "model.onnx").stat().st_size
        seconds = time.perf_counter() - began
        print(f"ONNX: {seconds:.0f} s, {peak / 2**20:.2f} GiB peak ({before / 2**20:.2f} before), {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
