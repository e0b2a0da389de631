"""FedMGP (Bo et al., NeurIPS 2025, arXiv 2511.00480): each client has a list of groups."""

import math

import torch

from oracle.clip_image import tower_features
from oracle.clip_text import prompt_features
from oracle.training import Record, average, cross_entropy, train


def cosine(one, other):
    """The cosine of two prompts, each flattened to one vector."""
    product, a, b = (sum((x * y).flatten().tolist()) for x, y in ((one, other), (one, one), (other, other)))
    return product / math.sqrt(a * b)


def likeness(of_groups):
    """The mean cosine over pairs of groups and over their features. of_groups: G times [n, D]."""
    total, pairs = 0, 0
    for i in range(len(of_groups)):
        for j in range(i + 1, len(of_groups)):
            cosines = [torch.dot(a, b) for a, b in zip(of_groups[i], of_groups[j], strict=True)]
            total, pairs = total + sum(cosines) / len(cosines), pairs + 1
    return total / pairs if pairs else 0.0


def draw(groups, sent, s, tau, generator):
    """Draw the indices of s groups, in order.

    groups: for each group, the list of its prompts, one of every kind. sent: the groups from the server, in the same
    form, or None in the first round.
    """
    if sent is None:
        weights = [1.0] * len(groups)
    else:
        similar = [[sum(map(cosine, group, one)) / len(one) for one in sent] for group in groups]
        nearest = [max(row) for row in similar]
        weights = [math.exp((similarity - max(nearest)) / tau) for similarity in nearest]
    return torch.multinomial(torch.tensor(weights, dtype=torch.float64), s, generator=generator).tolist()


def run(world, G, s, lam, tau, tail="{}.", draws=None):
    """draws: a dictionary that gets the drawn groups by (round, client)."""
    kinds = [kind for kind in ("text", "visual") if kind in world.first[0]]
    scale, record = torch.exp(world.clip.logit_scale), Record()
    # for each client: the prompts of its groups by kind, and the groups that the server overwrites
    own = [{kind: list(first[kind]) for kind in kinds} for first in world.first]
    places = [[] for _ in world.first]
    server = {}

    def overwritten(i):
        for kind in kinds:
            for slot, place in enumerate(places[i]):
                own[i][kind][place] = server[kind][slot]
        return own[i]

    def grouped(by_kind):
        """The prompts of every group, from prompts by kind."""
        return [list(group) for group in zip(*(by_kind[kind] for kind in kinds), strict=True)]

    def features(prompts, images, names):
        """T_j and I_j of every group."""
        T = [prompt_features(world.clip, world.tokenizer, p, names, tail=tail) for p in prompts["text"]]
        if "visual" not in prompts:
            return T, [images] * G
        return T, [tower_features(world.clip, images.tokens, [p]) for p in prompts["visual"]]

    def stacked(values, kind, at):
        """The slots, and the client's other groups, with the names of the library."""
        alone = [torch.zeros_like(value) if j in at else value for j, value in enumerate(values)]
        slots = [values[j] for j in at] or [torch.zeros_like(values[0])] * s
        return {f"{kind}_G": torch.stack(slots), kind: torch.stack(alone)}

    for number, work in enumerate(world.schedule, 1):
        sent, counts = [], []
        for i, batches in work.items():

            def loss_of(theta, images, labels):
                prompts = {kind: [theta[f"{kind} {j}"] for j in range(G)] for kind in kinds}
                T, seen = features(prompts, images, world.names)
                task = sum(cross_entropy(scale * seen[j] @ T[j].T, labels) for j in range(G)) / G
                alike = [likeness(T), likeness(seen)] if "visual" in kinds else [likeness(T)]
                return task + lam * sum(alike) / len(alike)

            start = {f"{kind} {j}": p for kind, prompts in overwritten(i).items() for j, p in enumerate(prompts)}
            theta, steps = train(loss_of, start, *world.clients[i], batches, world.settings)
            record.steps[number, i] = []
            for loss, gradient in steps:
                by_name = {}
                for kind in kinds:
                    by_name |= stacked([gradient[f"{kind} {j}"] for j in range(G)], kind, places[i])
                record.steps[number, i].append((loss, by_name))
            own[i] = {kind: [theta[f"{kind} {j}"] for j in range(G)] for kind in kinds}
            received = grouped(server) if places[i] else None
            places[i] = draw(grouped(own[i]), received, s, tau, world.generator(number, i))
            if draws is not None:
                draws[number, i] = places[i]
            sent.append({kind: [own[i][kind][place] for place in places[i]] for kind in kinds})
            counts.append(len(world.clients[i][1]))
        server = {kind: [average([c[kind][slot] for c in sent], counts) for slot in range(s)] for kind in kinds}
        clients = []
        for i in range(len(own)):
            state = {}
            for kind in kinds:
                state[kind] = stacked(own[i][kind], kind, places[i])[kind]
            state["places"] = torch.zeros(s, G)
            for slot, place in enumerate(places[i]):
                state["places"][slot, place] = 1
            clients.append(state)
        record.rounds.append(({f"{kind}_G": torch.stack(server[kind]) for kind in kinds}, clients))
    for i in range(len(own)):
        with torch.no_grad():
            T, seen = features(overwritten(i), world.images, world.all_names)
            record.logits.append(sum(scale * f @ t.T for f, t in zip(seen, T, strict=True)) / G)
    return record
