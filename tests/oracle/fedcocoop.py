"""CoCoOp (Zhou et al., CVPR 2022, arXiv 2203.05557) with FedAvg, image by image and class by class."""

import torch

from oracle.clip_text import prompt_feature
from oracle.training import cross_entropy, federate


def context_of(theta, x):
    """p(x): every vector of the context, shifted by the output of the Meta-Net for an image's feature."""
    hidden = theta["W_1"] @ x + theta["b_1"]
    hidden = torch.stack([unit if unit > 0 else 0 * unit for unit in hidden])
    shift = theta["W_2"] @ hidden + theta["b_2"]
    return torch.stack([vector + shift for vector in theta["p"]])


def run(world):
    scale = torch.exp(world.clip.logit_scale)

    def logits_of(theta, images, names):
        rows = []
        for x in images:
            context = context_of(theta, x)
            features = [prompt_feature(world.clip, world.tokenizer, context, name) for name in names]
            rows.append(torch.stack([scale * torch.dot(x, feature) for feature in features]))
        return torch.stack(rows)

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta, images, world.names), labels)

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits_of(theta, images, names)
    )
