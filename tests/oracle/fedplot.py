"""PLOT (Chen et al., ICLR 2023, arXiv 2210.01253) on every client, averaged."""

import torch

from oracle.clip_text import prompt_features
from oracle.training import cross_entropy, federate
from oracle.transport import carried


def logits_of(world, contexts, images, names, **problem):
    """exp(logit_scale) · the transported similarity of patches and prompts, image by image and class by class.

    contexts: N of [M, d]; problem: epsilon, mass and tolerance.
    """
    h = [prompt_features(world.clip, world.tokenizer, context, names) for context in contexts]
    scale, rows = torch.exp(world.clip.logit_scale), []
    for patches in images.tokens:
        row = [carried(patches, torch.stack([of_prompt[c] for of_prompt in h]), **problem) for c in range(len(names))]
        rows.append(scale * torch.stack(row))
    return torch.stack(rows)


def run(world, epsilon, tolerance):
    problem = {"epsilon": epsilon, "mass": 1, "tolerance": tolerance}

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(world, theta["P"], images, world.names, **problem), labels)

    return federate(
        world,
        ["P"],
        loss_of,
        lambda theta, images, names, client: logits_of(world, theta["P"], images, names, **problem),
    )
