"""pFedPrompt (Guo et al., WWW 2023), with the cache of Tip-Adapter (arXiv 2207.09519), image by image."""

import torch

from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def run(world, alpha, beta):
    """PromptFL in training; at prediction α exp(−β (1 − f·F_j)) for the class of every remembered image j."""

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(world, theta["p_G"], images, world.names), labels)

    def predict(theta, images, names, client):
        found = logits_of(world, theta["p_G"], images, names).clone()
        for row, f in enumerate(images):
            for key, label in zip(*world.clients[client], strict=True):
                column = names.index(world.names[label])
                found[row, column] += alpha * torch.exp(-beta * (1 - torch.dot(f, key)))
        return found

    return federate(world, ["p_G"], loss_of, predict)
