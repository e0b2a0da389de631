"""PromptFL (Guo et al. 2022, arXiv 2208.11625): one prompt for all, averaged."""

import torch

from oracle.clip_text import prompt_features
from oracle.training import cross_entropy, federate


def logits_of(world, context, images, names):
    """exp(logit_scale) · f(x) · g(p)."""
    return torch.exp(world.clip.logit_scale) * images @ prompt_features(world.clip, world.tokenizer, context, names).T


def run(world):
    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(world, theta["p_G"], images, world.names), labels)

    return federate(
        world, ["p_G"], loss_of, lambda theta, images, names, client: logits_of(world, theta["p_G"], images, names)
    )
