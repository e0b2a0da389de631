"""FedPer (Arivazhagan et al. 2019, arXiv 1912.00818) on a prompt: first vectors shared, last ones private."""

import torch

from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def run(world):
    def whole(theta):
        vectors = [vector for name in ("p_G", "p") if name in theta for vector in theta[name]]
        return torch.stack(vectors)

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(world, whole(theta), images, world.names), labels)

    shared = ["p_G"] if "p_G" in world.first[0] else []
    return federate(
        world, shared, loss_of, lambda theta, images, names, client: logits_of(world, whole(theta), images, names)
    )
