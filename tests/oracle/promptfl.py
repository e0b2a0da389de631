"""PromptFL (Guo et al. 2022, arXiv 2208.11625): one prompt for all, averaged."""

import torch

from oracle.clip_text import prompt_features
from oracle.training import Record, average, cross_entropy, train


def logits_of(clip, tokenizer, names, p_G, images):
    """exp(logit_scale) · f(x) · g(p_G)."""
    return torch.exp(clip.logit_scale) * images @ prompt_features(clip, tokenizer, p_G, names).T


def run(clip, tokenizer, names, clients, first, schedule, settings):
    """clients: (images, labels) each; first: p_G; schedule: per round {client: batches of image numbers}."""

    def loss_of(theta, images, labels):
        return cross_entropy(logits_of(clip, tokenizer, names, theta["p_G"], images), labels)

    record = Record()
    p_G = first["p_G"]
    for work in schedule:
        sent, counts = [], []
        for i, batches in work.items():
            images, labels = clients[i]
            sent.append(train(loss_of, {"p_G": p_G}, images, labels, batches, settings, record)["p_G"])
            counts.append(len(labels))
        p_G = average(sent, counts)
        record.rounds.append(({"p_G": p_G}, [{} for _ in clients]))
    return record
