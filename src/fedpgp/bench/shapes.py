"""The work: a CLIP of a published shape and a base-to-novel task of the paper's size.

The three published shapes have random weights and made-up images, so that nothing is downloaded: the time of a step
does not depend on what the numbers are. "pictoclip" is the embedded checkpoint on the embedded data.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.text import TextEncoder
from fedpgp.bench.names import BASE_NAMES, NOVEL_NAMES, CountingTokenizer
from fedpgp.data.partition import deal_classes
from fedpgp.data.protocols import base_to_novel
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import ImageDataset, pictograms
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.errors import ConfigError, nearest
from fedpgp.runtime.randomness import generator

if TYPE_CHECKING:
    from transformers import CLIPModel

# The paper's base-to-novel setting.
CLIENTS, SHOTS, BATCH, LOCAL_EPOCHS, ROUNDS = 10, 8, 8, 2, 25
# CoOp's split of Caltech101.
IMAGES = {"train": 4128, "validation": 1649, "base": 1549, "novel": 916}

# Radford et al. 2021, tables 19 and 20: width, layers and heads of the text tower, then of the image tower; patch.
PUBLISHED = {
    "vit-b-16": ((512, 12, 8), (768, 12, 12), 16),
    "vit-b-32": ((512, 12, 8), (768, 12, 12), 32),
    "vit-l-14": ((768, 12, 12), (1024, 24, 16), 14),
}
EMBEDDED = "pictoclip"
SHAPES = (*PUBLISHED, EMBEDDED)

# Factors on transformers' first weights. Without them every class has nearly the same text feature.
SHARPNESS = {"q_proj": 8.0, "k_proj": 8.0, "v_proj": 4.0, "out_proj": 4.0}


@dataclass(frozen=True)
class Scene:
    """What is benchmarked.

    images: how many a run encodes once: every image of the three splits.
    pixels: preprocessed images [n, 3, side, side] by split, of the whole split or, where `made_up`, of one batch.
    """

    name: str
    backbone: Backbone
    task: Task
    images: int
    pixels: dict[str, Tensor]
    made_up: bool

    @property
    def model(self) -> "CLIPModel":
        """transformers' module, which the library's encoders were made from."""
        return self.backbone.image.model

    @property
    def config(self) -> Any:
        """transformers' CLIPConfig of it."""
        return self.model.config


def scene(shape: str, precision: str, seed: int) -> Scene:
    """The model and the task of a shape; raises ConfigError for one that is unknown."""
    if shape == EMBEDDED:
        return _embedded(precision, seed)
    if shape not in PUBLISHED:
        raise ConfigError(f"shape must be a known one, got {shape!r}; {nearest(shape, SHAPES)}")
    config = published_config(shape)
    model = random_clip(config, precision, seed)
    side = config.vision_config.image_size
    drawn = torch.randn(BATCH, 3, side, side, generator=generator(seed, "pixels"))
    return Scene(
        name=shape,
        backbone=random_backbone(model),
        task=caltech_like(seed),
        images=sum(IMAGES.values()),
        pixels={"train": drawn.to(model.dtype)},
        made_up=True,
    )


def published_config(shape: str) -> Any:
    """The CLIPConfig of a published shape."""
    from transformers import CLIPConfig

    (width, layers, heads), (image_width, image_layers, image_heads), patch = PUBLISHED[shape]
    return CLIPConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "projection_dim": width,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
        },
        vision_config={
            "hidden_size": image_width,
            "intermediate_size": 4 * image_width,
            "num_hidden_layers": image_layers,
            "num_attention_heads": image_heads,
            "projection_dim": width,
            "patch_size": patch,
            "image_size": 224,
            "hidden_act": "quick_gelu",
        },
        projection_dim=width,
        logit_scale_init_value=math.log(100),
    )


def random_clip(config: Any, precision: str, seed: int) -> "CLIPModel":
    """A frozen CLIPModel with random weights whose features differ from class to class and from image to image."""
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
    return model.to(getattr(torch, precision)).eval().requires_grad_(False)


def random_backbone(model: "CLIPModel") -> Backbone:
    """The library's encoders on such a model. There are no pictures, so there is no preprocessing."""
    tokenizer = CountingTokenizer()
    return Backbone(
        files=(),
        image=ImageEncoder(model, processor=None),  # type: ignore[arg-type]
        text=TextEncoder.of(model, tokenizer.bos_token_id),
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach(),
    )


def caltech_like(seed: int) -> Task:
    """10 clients with 5 of the 50 base classes each and 8 images of each class; test sets of Caltech101's sizes."""
    base, novel = tuple(range(len(BASE_NAMES))), tuple(range(len(BASE_NAMES), len(BASE_NAMES) + len(NOVEL_NAMES)))
    train = made_up_split("train", np.repeat(base, SHOTS))
    test = made_up_split("test", np.concatenate([np.resize(base, IMAGES["base"]), np.resize(novel, IMAGES["novel"])]))
    validation = made_up_split("validation", np.resize(base, IMAGES["validation"] // 2))
    return Task(
        name="Caltech-like base-to-novel",
        class_names=(*BASE_NAMES, *NOVEL_NAMES),
        base=base,
        train=train,
        clients=tuple(
            Client(i, dealt, train.of_classes(dealt)) for i, dealt in enumerate(deal_classes(base, CLIENTS, None, seed))
        ),
        tests={
            name: EvaluationSet(test, own, test.of_classes(own)) for name, own in (("base", base), ("novel", novel))
        },
        validation=EvaluationSet(validation, base, validation.of_classes(base)),
    )


def made_up_split(name: str, labels: Any, class_names: tuple[str, ...] = (*BASE_NAMES, *NOVEL_NAMES)) -> ImageDataset:
    """A split of which only the labels exist."""
    return ImageDataset(
        name="made-up",
        split=name,
        class_names=class_names,
        domain_names=("none",),
        labels=np.asarray(labels, dtype=np.int64),
        domains=np.zeros(len(labels), dtype=np.int64),
        image=_no_picture,
        fingerprint="made-up",
    )


def _no_picture(index: int) -> Any:
    raise NotImplementedError("a made-up image has no picture")


def random_features(count: int, like: Tensor, width: int, seed: int) -> Tensor:
    """Features [n, D] of unit length."""
    return F.normalize(torch.randn(count, width, generator=generator(seed, "features")), dim=-1).to(like)


def _embedded(precision: str, seed: int) -> Scene:
    backbone = load_backbone(EMBEDDED, precision)
    source = pictograms.read()
    task = base_to_novel(source, TaskConfig(clients=CLIENTS, shots=SHOTS), seed)
    splits = {"train": source.train, "validation": source.validation, "test": task.tests["base"].dataset}
    pixels = {}
    for name, split in splits.items():
        pictures = [split.image(i) for i in range(len(split))]
        pixels[name] = backbone.image.processor(images=pictures, return_tensors="pt")["pixel_values"].to(
            backbone.logit_scale.dtype
        )
    return Scene(EMBEDDED, backbone, task, sum(map(len, splits.values())), pixels, made_up=False)
