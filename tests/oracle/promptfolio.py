"""PromptFolio (Pan et al. 2024, arXiv 2409.19610): two prompts, whose logits are mixed."""

from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def run(world, theta_mix):
    def mixed(theta, images, names):
        of_global = logits_of(world, theta["p_G"], images, names)
        of_local = logits_of(world, theta["p"], images, names)
        return (1 - theta_mix) * of_global + theta_mix * of_local

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(mixed(theta, images, world.names), labels)

    return federate(world, ["p_G"], loss_of, lambda theta, images, names, client: mixed(theta, images, names))
