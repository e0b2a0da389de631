"""FedPGP (Cui et al., ICML 2024, arXiv 2405.09771)."""

import torch

from oracle.clip_text import prompt_features, template_features
from oracle.training import Record, average, cross_entropy, train


def logits_of(clip, tokenizer, names, p_G, U, V, images):
    """exp(logit_scale) · f(x) · z_i with p_i = p_G + U V."""
    z_i = prompt_features(clip, tokenizer, p_G + U @ V, names)
    return torch.exp(clip.logit_scale) * images @ z_i.T


def contrastive_of(z_C, z_G, z_i, tau):
    """−log( exp(cos(z_C,z_G)/τ) / (exp(cos(z_C,z_G)/τ) + exp(cos(z_G,z_i)/τ)) ), mean over classes."""
    total = 0
    for c in range(len(z_C)):
        positive = torch.exp(torch.dot(z_C[c], z_G[c]) / tau)
        negative = torch.exp(torch.dot(z_G[c], z_i[c]) / tau)
        total = total - torch.log(positive / (positive + negative))
    return total / len(z_C)


def run(clip, tokenizer, names, clients, first, schedule, settings, mu, tau):
    """clients: (images, labels) each; first: p_G, U, V; schedule: per round {client: batches of image numbers}."""
    z_C = template_features(clip, tokenizer, "a photo of a {}.", names)

    def loss_of(theta, images, labels):
        z_G = prompt_features(clip, tokenizer, theta["p_G"], names)
        z_i = prompt_features(clip, tokenizer, theta["p_G"] + theta["U"] @ theta["V"], names)
        logits = torch.exp(clip.logit_scale) * images @ z_i.T
        return cross_entropy(logits, labels) + mu * contrastive_of(z_C, z_G, z_i, tau)

    record = Record()
    p_G = first["p_G"]
    private = [{"U": first["U"], "V": first["V"]} for _ in clients]
    for work in schedule:
        sent, counts = [], []
        for i, batches in work.items():
            images, labels = clients[i]
            theta = train(loss_of, {"p_G": p_G, **private[i]}, images, labels, batches, settings, record)
            private[i] = {"U": theta["U"], "V": theta["V"]}
            sent.append(theta["p_G"])
            counts.append(len(labels))
        p_G = average(sent, counts)
        record.rounds.append(({"p_G": p_G}, [dict(own) for own in private]))
    return record
