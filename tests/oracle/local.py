"""Every client alone: CoOp (Zhou et al. 2021, arXiv 2109.01134) on its own images, from round to round."""

from oracle.promptfl import logits_of
from oracle.training import Record, cross_entropy, train


def run(clip, tokenizer, names, clients, first, schedule, settings):
    """clients: (images, labels) each; first: p; schedule: per round {client: batches of image numbers}."""

    def loss_of(theta, images, labels):
        return cross_entropy(logits_of(clip, tokenizer, names, theta["p"], images), labels)

    record = Record()
    prompts = [first["p"] for _ in clients]
    for work in schedule:
        for i, batches in work.items():
            images, labels = clients[i]
            prompts[i] = train(loss_of, {"p": prompts[i]}, images, labels, batches, settings, record)["p"]
        record.rounds.append(({}, [{"p": p} for p in prompts]))
    return record
