"""PromptSRC (Khattak et al. 2023, arXiv 2307.06948) on every client, averaged over clients and then over rounds."""

import math

import torch

from oracle.clip_text import template_features
from oracle.fedivlp import of_images, of_text
from oracle.training import cross_entropy, federate

TEMPLATES = (  # of CLIP's notebook
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def teacher(world, names):
    """z_C [C, D]: for each class the mean of the features of its templates, normalized to unit length."""
    rows = []
    for name in names:
        mean = sum(template_features(world.clip, world.tokenizer, t, [name])[0] for t in TEMPLATES) / len(TEMPLATES)
        rows.append(mean / torch.sqrt(mean @ mean))
    return torch.stack(rows)


def distance(one, other):
    """The mean of |one − other| over all entries."""
    total = sum(torch.abs(a - b).sum() for a, b in zip(one, other, strict=True))
    return total / (one.shape[0] * one.shape[1])


def divergence(taught, prompted):
    """Σ q ln(q/p) over images and classes, divided by B C. q, p: softmax of the logits [B, C]."""
    B, C = taught.shape
    total = 0
    for b in range(B):
        q, p = torch.softmax(taught[b], 0), torch.softmax(prompted[b], 0)
        for c in range(C):
            total = total + q[c] * (torch.log(q[c]) - torch.log(p[c]))
    return total / (B * C)


def gaussian(values, mean, std):
    """The mean of the results of rounds 1, 2, …, weighted by a normal distribution."""
    weights = [math.exp(-((t - mean) ** 2) / (2 * std**2)) for t in range(1, len(values) + 1)]
    total = sum(weights)
    return sum(weight / total * value for weight, value in zip(weights, values, strict=True))


def run(world, text, image, logits, over_rounds=None, tail="{}."):
    """text, image, logits: weights of the terms.

    over_rounds: mean and deviation of the weights of rounds, as fractions of the number of rounds.
    """
    scale, names = torch.exp(world.clip.logit_scale), list(world.first[0])
    z_C = teacher(world, world.names)

    def loss_of(theta, images, labels, start, client):
        z, f = of_text(world, theta, world.names, tail), of_images(world, theta, images)
        f_0 = images.pooled if "visual" in theta else images
        prompted, taught = scale * f @ z.T, scale * f_0 @ z_C.T
        terms = text * distance(z, z_C) + image * distance(f, f_0) + logits * divergence(taught, prompted)
        return cross_entropy(prompted, labels) + terms

    def logits_of(theta, images, names, client):
        return scale * of_images(world, theta, images) @ of_text(world, theta, names, tail).T

    record = federate(world, names, loss_of, logits_of)
    if over_rounds:
        centre, deviation = (fraction * len(record.rounds) for fraction in over_rounds)
        mean = {name: gaussian([server[name] for server, _ in record.rounds], centre, deviation) for name in names}
        with torch.no_grad():
            record.logits = [logits_of(mean, world.images, world.all_names, i) for i in range(len(world.clients))]
    return record
