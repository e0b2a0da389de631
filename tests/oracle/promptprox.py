"""FedProx (Li et al. 2020, arXiv 1812.06127, equation 2) on PromptFL's prompt."""

from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def run(world, mu):
    def loss_of(theta, images, labels, start, client):
        distance = 0
        for value, received in zip(theta["p_G"].flatten(), start["p_G"].flatten(), strict=True):
            distance = distance + (value - received) ** 2
        return cross_entropy(logits_of(world, theta["p_G"], images, world.names), labels) + mu / 2 * distance

    return federate(
        world, ["p_G"], loss_of, lambda theta, images, names, client: logits_of(world, theta["p_G"], images, names)
    )
