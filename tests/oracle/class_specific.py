"""CoOp's class-specific contexts (Zhou et al. 2021, section 3.2) and the positions of the class name."""

import torch

from oracle.clip_text import padded, read_at
from oracle.training import cross_entropy, federate


def feature(world, context, name, position):
    """The text feature of one class: [SOS] first-half name second-half . [EOS]."""
    M = len(context)
    ahead = {"end": M, "middle": M // 2, "front": 0}[position]
    table = world.clip.text_model.embeddings.token_embedding
    words = world.tokenizer(name, add_special_tokens=False)["input_ids"]
    ids, end = padded(world.clip, world.tokenizer, name + ".", placeholders=M)
    rows = table(ids)[0]
    sequence = [rows[0], *context[:ahead], *table(torch.tensor(words)), *context[ahead:], *rows[1 + M + len(words) :]]
    return read_at(world.clip, torch.stack(sequence)[None], end)


def run(world, shared, position):
    """shared: whether the contexts [M, d] or [C, M, d] are averaged. A class without a context uses their mean."""
    name_of = "p_G" if shared else "p"

    def logits_of(contexts, images, names, places):
        rows = []
        for name, place in zip(names, places, strict=True):
            if contexts.dim() == 2:
                context = contexts
            elif place >= 0:
                context = contexts[place]
            else:
                context = sum(contexts[c] for c in range(len(contexts))) / len(contexts)
            rows.append(feature(world, context, name, position))
        return torch.exp(world.clip.logit_scale) * images @ torch.stack(rows).T

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta[name_of], images, world.names, range(len(world.names))), labels)

    def predict(theta, images, names, client):
        return logits_of(theta[name_of], images, names, world.base)

    return federate(world, ["p_G"] if shared else [], loss_of, predict)
