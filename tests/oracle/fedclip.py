"""FedCLIP (Lu et al. 2023, arXiv 2302.13485), image by image."""

import torch

from oracle.clip_text import template_features
from oracle.training import cross_entropy, federate


def adapted(theta, f):
    """a(f) ⊙ f of unit length."""
    u = theta["W_2"] @ torch.tanh(theta["W_1"] @ f + theta["b_1"]) + theta["b_2"]
    a = torch.exp(u) / torch.exp(u).sum()
    return a * f / torch.sqrt((a * f * a * f).sum())


def contrastive(V, texts, scale):
    """The mean of the cross-entropies of images over texts and of texts over images. V, texts: B vectors each."""
    B = len(V)
    S = [[scale * torch.dot(V[i], texts[j]) for j in range(B)] for i in range(B)]
    total = 0
    for b in range(B):
        total = total - S[b][b] + torch.log(sum(torch.exp(S[b][j]) for j in range(B)))
        total = total - S[b][b] + torch.log(sum(torch.exp(S[i][b]) for i in range(B)))
    return total / (2 * B)


def run(world, in_batch, template="a photo of a {}."):
    """in_batch: whether the loss is the contrastive loss instead of the cross-entropy over all base classes."""
    scale = torch.exp(world.clip.logit_scale)

    def features(names):
        return template_features(world.clip, world.tokenizer, template, names)

    def logits_of(theta, images, names):
        return scale * torch.stack([adapted(theta, f) for f in images]) @ features(names).T

    def loss_of(theta, images, labels, start, client):
        if not in_batch:
            return cross_entropy(logits_of(theta, images, world.names), labels)
        texts = features(world.names)
        return contrastive([adapted(theta, f) for f in images], [texts[label] for label in labels], scale)

    return federate(
        world, list(world.first[0]), loss_of, lambda theta, images, names, client: logits_of(theta, images, names)
    )
