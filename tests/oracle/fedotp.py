"""FedOTP (Li et al., CVPR 2024, arXiv 2403.00041): a shared and a private prompt."""

from oracle.fedplot import logits_of
from oracle.training import cross_entropy, federate


def run(world, epsilon, mass, tolerance):
    problem = {"epsilon": epsilon, "mass": mass, "tolerance": tolerance}

    def of_both(theta, images, names):
        return logits_of(world, [theta["p_G"], theta["p_i"]], images, names, **problem)

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(of_both(theta, images, world.names), labels)

    return federate(world, ["p_G"], loss_of, lambda theta, images, names, client: of_both(theta, images, names))
