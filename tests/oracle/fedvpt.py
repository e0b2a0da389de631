"""Visual prompts of several layers (VPT, Jia et al. 2022, arXiv 2203.12119) in CLIP's image tower, averaged."""

import torch

from oracle.clip_image import tower_features
from oracle.clip_text import template_features
from oracle.training import cross_entropy, federate


def layers(theta, name):
    """The vectors of every layer with a prompt, starting with the first layer."""
    return [theta[name], *theta.get(f"{name}_deeper", [])]


def run(world, template="a photo of a {}."):
    scale = torch.exp(world.clip.logit_scale)

    def logits_of(theta, images, names):
        seen = tower_features(world.clip, images.tokens, layers(theta, "visual"))
        return scale * seen @ template_features(world.clip, world.tokenizer, template, names).T

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta, images, world.names), labels)

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits_of(theta, images, names)
    )
