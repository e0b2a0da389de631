"""FedPHA (Fang et al., ICML 2025, PMLR 267:15960-15975)."""

import torch

from oracle.clip_text import prompt_features
from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def projected(p, p_G, ratio, projection):
    """p without the first directions of p_G (eigenvectors of p_Gᵀ p_G), or with "code" only p_G's other directions."""
    with torch.no_grad():
        M = len(p_G)
        _, vectors = torch.linalg.eigh(p_G.T @ p_G)
        directions = [vectors[:, -1 - j] for j in range(M)]  # by falling eigenvalue
        first = int(round(M * (1 - ratio), 6))
    if projection == "code":
        return sum(torch.outer(p @ v, v) for v in directions[first:])
    for v in directions[:first]:
        p = p - torch.outer(p @ v, v)
    return p


def run(world, ratio, projection, margin, pull, push, active=None):
    """active: a list that gets, for every class of every step, whether it is pushed away."""

    def loss_of(theta, images, labels, start, client):
        p, p_G = theta["p"], theta["p_G"]
        z_i, z_o, z_G = (
            prompt_features(world.clip, world.tokenizer, context, world.names)
            for context in (p, projected(p, p_G, ratio, projection), p_G)
        )
        scale = torch.exp(world.clip.logit_scale)
        total = cross_entropy(scale * images @ z_i.T, labels) + cross_entropy(scale * images @ z_G.T, labels)
        C, D = z_i.shape
        for c in range(C):
            total = total + pull * ((z_i[c] - z_o[c]) ** 2).sum() / (C * D)
            distance = torch.sqrt(((z_i[c] - z_G[c]) ** 2).sum())
            if distance < margin:
                total = total + push * (margin - distance) / C
            if active is not None:
                active.append(bool(distance < margin))
        return total

    return federate(
        world, ["p_G"], loss_of, lambda theta, images, names, client: logits_of(world, theta["p"], images, names)
    )
