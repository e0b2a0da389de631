"""CoOp (Zhou et al. 2021, arXiv 2109.01134) on the images of all clients together, in one training per round."""

import torch

from oracle.promptfl import logits_of
from oracle.training import Record, cross_entropy, train


def run(world):
    """world.schedule: for each round {0: batches of indices into the concatenated images of all clients}."""

    def loss_of(theta, images, labels):
        return cross_entropy(logits_of(world, theta["p_G"], images, world.names), labels)

    record = Record()
    images, labels = (torch.cat([client[i] for client in world.clients]) for i in range(2))
    theta = {"p_G": world.first[0]["p_G"]}
    for number, work in enumerate(world.schedule, 1):
        theta, record.steps[number, 0] = train(loss_of, theta, images, labels, work[0], world.settings)
        record.rounds.append((theta, [{} for _ in world.clients]))
    with torch.no_grad():
        record.logits = [logits_of(world, theta["p_G"], world.images, world.all_names) for _ in world.clients]
    return record
