"""Models and tasks of the benchmark: CLIP with a published shape, and a base-to-novel task as large as in the paper.

The three published shapes have random weights and made-up images, so that nothing is downloaded; the time of a step
does not depend on the values. "pictoclip" is the embedded checkpoint on the embedded data.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.text import TextEncoder
from fedpgp.bench.names import BASE_NAMES, NOVEL_NAMES, CountingTokenizer
from fedpgp.data.protocols import base_to_novel
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import ImageDataset, Source, pictograms
from fedpgp.data.tasks import Task
from fedpgp.runtime.randomness import generator
from fedpgp.testing import made_up_split

if TYPE_CHECKING:
    from transformers import CLIPModel

# Base-to-novel setting of the paper.
CLIENTS, SHOTS, BATCH, LOCAL_EPOCHS, ROUNDS = 10, 8, 8, 2, 25
# Sizes of CoOp's split of Caltech101.
IMAGES = {"train": 4128, "validation": 1649, "base": 1549, "novel": 916}

# Radford et al. 2021, tables 19 and 20: differences from the defaults of transformers, which are ViT-B/32.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vit-b-16": {"vision_config": {"patch_size": 16}},
    "vit-b-32": {},
    "vit-l-14": {
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    },
}
EMBEDDED = "pictoclip"
SHAPES = (*PUBLISHED, EMBEDDED)

# Factors for the initial weights of transformers; otherwise all classes would have nearly the same text feature.
SHARPNESS = {"q_proj": 8.0, "k_proj": 8.0, "v_proj": 4.0, "out_proj": 4.0}


@dataclass(frozen=True)
class Scene:
    """Model and task of a benchmark.

    Attributes
    ----------
    backbone
        The dual encoder.
    task
        The task.
    pixels
        Preprocessed images [n, 3, side, side] by split: the whole split or, if `made_up`, one batch.
    made_up
        Whether weights and images are random.
    """

    backbone: Backbone
    task: Task
    pixels: dict[str, Tensor]
    made_up: bool

    @property
    def model(self) -> "CLIPModel":
        """Module of transformers from which the encoders of the library were made."""
        encoder = self.backbone.image
        assert isinstance(encoder, ImageEncoder)
        return encoder.model

    @property
    def images(self) -> int:
        """Number of images that a run encodes once: all images of the three splits."""
        return sum(IMAGES.values()) if self.made_up else sum(map(len, self.pixels.values()))


def scene(shape: str, precision: str, seed: int) -> Scene:
    """Return the model and the task of one of `SHAPES`."""
    if shape == EMBEDDED:
        return _embedded(precision, seed)
    config = published_config(shape)
    backbone = random_backbone(config, precision, seed)
    side = config.vision_config.image_size
    drawn = torch.randn(BATCH, 3, side, side, generator=generator(seed, "pixels")).to(backbone.logit_scale)
    return Scene(backbone, caltech_like(seed), {"train": drawn}, made_up=True)


def published_config(shape: str) -> Any:
    """Return the CLIPConfig of a published shape."""
    from transformers import CLIPConfig

    towers = PUBLISHED[shape]
    width = towers.get("text_config", {}).get("hidden_size", 512)
    return CLIPConfig(**towers, projection_dim=width, logit_scale_init_value=math.log(100))


def random_backbone(config: Any, precision: str, seed: int) -> Backbone:
    """Return the encoders of the library on a frozen CLIPModel with random weights.

    Features differ between classes and between images. There is no preprocessing, because there are no pictures.
    """
    from transformers import CLIPModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                layer, _, kind = name.rpartition(".")
                if kind == "bias":
                    weight.normal_(0, 0.02)
                else:
                    weight.mul_(SHARPNESS.get(layer.rpartition(".")[2], 1.0))
    model.to(getattr(torch, precision)).eval().requires_grad_(False)
    tokenizer = CountingTokenizer()
    return Backbone(
        files=(),
        image=ImageEncoder(model, processor=None),  # type: ignore[arg-type]
        text=TextEncoder.of(model, tokenizer.bos_token_id),
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach(),
    )


def caltech_like(seed: int) -> Task:
    """Return a task of 10 clients with 5 of 50 base classes and 8 images of each; test sets are as in Caltech101."""
    base, novel = np.arange(len(BASE_NAMES)), len(BASE_NAMES) + np.arange(len(NOVEL_NAMES))
    labels = {
        "train": np.repeat(base, SHOTS),
        "validation": np.resize(base, IMAGES["validation"] // 2),
        "test": np.concatenate([np.resize(base, IMAGES["base"]), np.resize(novel, IMAGES["novel"])]),
    }
    name, names = "Caltech-like", (*BASE_NAMES, *NOVEL_NAMES)
    train, validation, test = (made_up_split(name, split, names, of) for split, of in labels.items())
    source = Source(name, train=train, validation=validation, test=test)
    task = base_to_novel(source, TaskConfig(clients=CLIENTS, shots=SHOTS), seed)
    return replace(task, name=f"{source.name} {task.name}")


def _embedded(precision: str, seed: int) -> Scene:
    backbone, source = load_backbone(EMBEDDED, precision), pictograms.read()
    task = base_to_novel(source, TaskConfig(clients=CLIENTS, shots=SHOTS), seed)

    def pixels(split: ImageDataset) -> Tensor:
        pictures = [split.image(i) for i in range(len(split))]
        preprocessed: Tensor = backbone.image.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return preprocessed.to(backbone.logit_scale.dtype)

    splits = {"train": source.train, "validation": source.validation, "test": task.tests["base"].dataset}
    return Scene(backbone, task, {name: pixels(split) for name, split in splits.items()}, made_up=False)
