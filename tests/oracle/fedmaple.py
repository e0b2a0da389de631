"""MaPLe (Khattak et al. 2023, arXiv 2210.03117), averaged: vector by vector, layer by layer."""

import torch

from oracle.clip_image import tower_features
from oracle.fedivlp import of_text
from oracle.fedvpt import layers
from oracle.training import cross_entropy, federate


def visual(theta):
    """The visual prompt of every layer. Each vector is a linear function of a vector of the text prompt."""
    return [
        torch.stack([W @ vector + b for vector in P])
        for P, W, b in zip(layers(theta, "text"), theta["W"], theta["b"], strict=True)
    ]


def run(world, tail):
    scale = torch.exp(world.clip.logit_scale)

    def logits_of(theta, images, names):
        f = tower_features(world.clip, images.tokens, visual(theta)) if "W" in theta else images
        return scale * f @ of_text(world, theta, names, tail).T

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta, images, world.names), labels)

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits_of(theta, images, names)
    )
