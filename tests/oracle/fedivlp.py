"""Independent prompts of both towers (baseline of Khattak et al. 2023, arXiv 2210.03117 and 2307.06948), averaged."""

import torch

from oracle.clip_image import tower_features
from oracle.clip_text import prompt_features
from oracle.fedvpt import layers
from oracle.training import cross_entropy, federate


def of_text(world, theta, names, tail):
    """Text features z [C, D]."""
    first, *deeper = layers(theta, "text")
    return prompt_features(world.clip, world.tokenizer, first, names, deeper, tail=tail)


def of_images(world, theta, images):
    """Image features f [B, D], or the frozen features if there is no visual prompt."""
    return tower_features(world.clip, images.tokens, layers(theta, "visual")) if "visual" in theta else images


def run(world, tail="{}."):
    scale = torch.exp(world.clip.logit_scale)

    def logits_of(theta, images, names):
        return scale * of_images(world, theta, images) @ of_text(world, theta, names, tail).T

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta, images, world.names), labels)

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits_of(theta, images, names)
    )
