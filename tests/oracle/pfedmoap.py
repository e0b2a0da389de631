"""pFedMoAP (Luo et al., ICLR 2025, arXiv 2410.10114), image by image, class by class and head by head."""

import torch

from oracle.clip_text import prompt_features
from oracle.training import Record, average, cross_entropy, gradients


def pool(z, width):
    """Every R-th component, with R = D // width."""
    step = len(z) // width
    return torch.stack([z[step * j] for j in range(width)])


def attended(f, expert_features, W, b, heads, scaling):
    """The gate's text feature [g] of one class for one image. f: [g]; expert_features: 1 + E times [g]."""
    g = len(f)
    size = g // heads
    q = W[0] @ f + b[0]
    keys = [W[1] @ e + b[1] for e in expert_features]
    values = [W[2] @ e + b[2] for e in expert_features]
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = [torch.exp(scaling * torch.dot(q[own], key[own])) for key in keys]
        parts.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)) / sum(weights))
    return W[3] @ torch.cat(parts) + b[3]


def logits_of(own, experts, gate, images, scale, mixing, heads, scaling):
    """own: text features [C, D]; experts: E of the same."""
    plain = scale * images @ own.T
    if not experts:
        return plain
    W, b = gate[:, :, :-1], gate[:, :, -1]
    width = W.shape[1]
    rows = []
    for f, row in zip(images, plain, strict=True):
        found = []
        for c in range(len(own)):
            features = [pool(features[c], width) for features in [own, *experts]]
            h = attended(pool(f, width), features, W, b, heads, scaling)
            found.append(mixing * row[c] + scale * torch.dot(pool(f, width), h))
        rows.append(torch.stack(found))
    return torch.stack(rows)


def nearest(sent, i, count):
    """The `count` last prompts of other clients that are nearest to client i's; none if i has sent none."""
    if i not in sent:
        return []
    distance = {j: torch.sqrt(((sent[j] - sent[i]) ** 2).sum()).item() for j in sent if j != i}
    return [sent[j] for j in sorted(distance, key=distance.get)[:count]]


def run(world, experts, mixing, heads, scaling, gate_learning_rate):
    """world.schedule may omit clients in a round. gate_learning_rate: learning rate of the gate."""
    record, settings, scale = Record(), world.settings, torch.exp(world.clip.logit_scale)
    average_prompt, sent = world.first[0]["p"], {}
    gates = [first["gate"] for first in world.first]

    def features(prompt, names):
        return prompt_features(world.clip, world.tokenizer, prompt, names)

    for number, work in enumerate(world.schedule, 1):
        before = dict(sent)
        for i, batches in work.items():
            images, labels = world.clients[i]
            others = [features(p, world.names).detach() for p in nearest(before, i, experts - 1)]
            theta = {"p": average_prompt, **({"gate": gates[i]} if others else {})}
            velocity, steps = {name: torch.zeros_like(value) for name, value in theta.items()}, []
            for batch in batches:
                theta = {name: value.detach().requires_grad_(True) for name, value in theta.items()}
                own = features(theta["p"], world.names)
                logits = logits_of(own, others, theta.get("gate"), images[batch], scale, mixing, heads, scaling)
                loss = cross_entropy(logits, labels[batch])
                gradient = gradients(loss, theta)
                steps.append((loss.item(), gradient))
                with torch.no_grad():
                    for name in theta:
                        velocity[name] = settings.momentum * velocity[name] + gradient[name]
                        velocity[name] = velocity[name] + settings.weight_decay * theta[name]
                        rate = settings.learning_rate if name == "p" else gate_learning_rate
                        theta[name] = theta[name] - rate * velocity[name]
            record.steps[number, i] = steps
            sent[i] = theta["p"].detach()
            if others:
                gates[i] = theta["gate"].detach()
        average_prompt = average([sent[i] for i in work], [len(world.clients[i][1]) for i in work])
        clients = [{"gate": gates[i], **({"p": sent[i]} if i in sent else {})} for i in range(len(gates))]
        record.rounds.append(({"p": average_prompt}, clients))
    for i, gate in enumerate(gates):
        with torch.no_grad():
            own = features(sent.get(i, average_prompt), world.all_names)
            others = [features(p, world.all_names) for p in nearest(sent, i, experts - 1)]
            record.logits.append(logits_of(own, others, gate, world.images, scale, mixing, heads, scaling))
    return record
