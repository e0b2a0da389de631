"""FedAMP and HeurFedAMP (Huang et al. 2021, arXiv 2007.03797) on a prompt: server and clients in one plain loop."""

import math

import torch

from oracle.promptfl import logits_of
from oracle.training import Record, cross_entropy, train


def distance(one, other):
    """The squared Euclidean distance, entry by entry."""
    return sum((a - b) ** 2 for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))


def cosine(one, other):
    product = sum(a * b for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))
    zero = torch.zeros_like(one)
    return product / math.sqrt(distance(one, zero) * distance(other, zero))


def attention(w, i, alpha, sigma, heuristic, sharpness, self_weight):
    """ξ_i of the prompts w."""
    others = [j for j in range(len(w)) if j != i]
    xi = [0.0] * len(w)
    if heuristic:
        total = sum(math.exp(sharpness * cosine(w[i], w[h])) for h in others)
        for j in others:
            xi[j] = (1 - self_weight) * math.exp(sharpness * cosine(w[i], w[j])) / total
    else:
        for j in others:
            xi[j] = alpha / sigma * math.exp(-distance(w[i], w[j]) / sigma)
        total = sum(xi)
        if total > 1:
            xi = [weight / total for weight in xi]
    xi[i] = 1 - sum(xi)
    return xi


def run(world, attraction, alpha, sigma, heuristic=False, sharpness=0.0, self_weight=0.0):
    first = world.first[0]["p"]
    w = [first for _ in world.clients]
    joined = set()
    record = Record()
    for number, work in enumerate(world.schedule, 1):
        cloud = []
        for i in range(len(w)):
            xi = attention(w, i, alpha, sigma, heuristic, sharpness, self_weight)
            cloud.append(sum(weight * prompt for weight, prompt in zip(xi, w, strict=True)))
        for i, batches in work.items():

            def loss_of(theta, images, labels, u=cloud[i]):
                task = cross_entropy(logits_of(world, theta["p"], images, world.names), labels)
                return task + attraction / (2 * alpha) * sum(
                    (a - b) @ (a - b) for a, b in zip(theta["p"], u, strict=True)
                )

            start = {"p": w[i] if i in joined else cloud[i]}
            theta, record.steps[number, i] = train(loss_of, start, *world.clients[i], batches, world.settings)
            w[i] = theta["p"]
            joined.add(i)
        record.rounds.append(({"p": first}, [{"p": prompt} for prompt in w]))
    with torch.no_grad():
        record.logits = [logits_of(world, prompt, world.images, world.all_names) for prompt in w]
    return record
