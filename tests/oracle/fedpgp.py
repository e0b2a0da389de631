"""FedPGP (Cui et al., ICML 2024, arXiv 2405.09771)."""

import torch

from oracle.clip_text import prompt_features, template_features
from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def contrastive_of(z_C, z_G, z_i, tau, positive, negative):
    """−log( exp(cos(z_C,z_G)/τ) / (exp(cos(z_C,z_G)/τ) + exp(cos(z_G,z_i)/τ)) ), mean over classes.

    Without one of the two, its cosine is 0.
    """
    total = 0
    for c in range(len(z_C)):
        near = torch.exp(torch.dot(z_C[c], z_G[c]) / tau) if positive else torch.tensor(1.0, dtype=torch.float64)
        far = torch.exp(torch.dot(z_G[c], z_i[c]) / tau) if negative else torch.tensor(1.0, dtype=torch.float64)
        total = total - torch.log(near / (near + far))
    return total / len(z_C)


def run(world, mu, tau, positive=True, negative=True):
    z_C = template_features(world.clip, world.tokenizer, "a photo of a {}.", world.names)

    def personal(theta):
        return theta["p_G"] + (theta["W"] if "W" in theta else theta["U"] @ theta["V"])

    def loss_of(theta, images, labels, start, client):
        z_G = prompt_features(world.clip, world.tokenizer, theta["p_G"], world.names)
        z_i = prompt_features(world.clip, world.tokenizer, personal(theta), world.names)
        logits = torch.exp(world.clip.logit_scale) * images @ z_i.T
        return cross_entropy(logits, labels) + mu * contrastive_of(z_C, z_G, z_i, tau, positive, negative)

    return federate(
        world, ["p_G"], loss_of, lambda theta, images, names, client: logits_of(world, personal(theta), images, names)
    )
