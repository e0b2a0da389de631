"""FedTPG (Qiu et al., ICLR 2024, arXiv 2310.06123), query by query and head by head."""

import math

import torch

from oracle.clip_text import template_features
from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def normalised(x, weight, bias):
    """Layer normalization of one vector."""
    deviation = x - x.sum() / len(x)
    variance = (deviation * deviation).sum() / len(x)
    return weight * deviation / torch.sqrt(variance + 1e-5) + bias


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def context_of(theta, features, heads):
    """The context [M, d] of classes with these text features [C, D]."""
    d = theta["queries"].shape[1]
    size = d // heads
    of_query, of_key, of_value = (theta["bias"][i * d : (i + 1) * d] for i in range(3))
    names = [normalised(t, theta["norm_names.weight"], theta["norm_names.bias"]) for t in features]
    keys = [theta["key"] @ t + of_key for t in names]
    values = [theta["value"] @ t + of_value for t in names]
    rows = []
    for learned in theta["queries"]:
        q = theta["query"] @ normalised(learned, theta["norm_queries.weight"], theta["norm_queries.bias"]) + of_query
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            weights = [torch.exp(torch.dot(q[own], key[own]) / math.sqrt(size)) for key in keys]
            parts.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)) / sum(weights))
        x = theta["out.weight"] @ torch.cat(parts) + theta["out.bias"]
        up = theta["up.weight"] @ normalised(x, theta["norm_up.weight"], theta["norm_up.bias"]) + theta["up.bias"]
        rows.append(x + theta["down.weight"] @ (up[: 4 * d] * gelu(up[4 * d :])) + theta["down.bias"])
    return torch.stack(rows)


def run(world, heads):
    """A client's softmax in training has only the classes of its images."""
    own = [sorted(set(labels.tolist())) for _, labels in world.clients]
    of_names = template_features(world.clip, world.tokenizer, "{}", world.all_names)

    def logits(theta, images, names):
        features = [of_names[world.all_names.index(name)] for name in names]
        return logits_of(world, context_of(theta, features, heads), images, names)

    def loss_of(theta, images, labels, start, client):
        found = logits(theta, images, [world.names[c] for c in own[client]])
        return cross_entropy(found, [own[client].index(label) for label in labels.tolist()])

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits(theta, images, names)
    )
