"""ProDA (Lu et al., CVPR 2022, arXiv 2205.03340) on every client, averaged."""

import torch

from oracle.clip_text import prompt_features
from oracle.training import Record, average, cross_entropy, train


def bound(w, images, labels, scale):
    """Logits s f·μ_c + s²/2 fᵀ A_c,y f with the diagonal A_c,y = S_yy + S_cc − S_cy − S_yc. w: features [B, C, D]."""
    B, C, _ = w.shape
    mu = [sum(w[k, c] for k in range(B)) / B for c in range(C)]

    def covariance(i, j):
        return sum((w[k, i] - mu[i]) * (w[k, j] - mu[j]) for k in range(B)) / (B + 1)

    rows = []
    for f, y in zip(images, labels.tolist(), strict=True):
        row = []
        for c in range(C):
            A = torch.diag(covariance(y, y) + covariance(c, c) - covariance(c, y) - covariance(y, c))
            row.append(scale * (f @ mu[c]) + scale**2 / 2 * (f @ A @ f))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def orthogonality(nameless):
    """The mean of |cos| over all pairs of two prompts; of one prompt 0."""
    B, total, pairs = len(nameless), 0, 0
    for i in range(B):
        for j in range(B):
            if i != j:
                total, pairs = total + torch.abs(nameless[i] @ nameless[j]), pairs + 1
    return total / pairs if pairs else 0


def run(world, per_step, weight):
    scale = torch.exp(world.clip.logit_scale)

    def features(prompts, names):
        return torch.stack([prompt_features(world.clip, world.tokenizer, prompt, names) for prompt in prompts])

    record, server = Record(), world.first[0]
    for number, work in enumerate(world.schedule, 1):
        sent, counts = [], []
        for i, batches in work.items():
            rng = world.generator(number, i)

            def loss_of(theta, images, labels, rng=rng):
                drawn = torch.randperm(len(theta["P"]), generator=rng)[:per_step]
                w = features([theta["P"][k] for k in drawn.tolist()], [*world.names, ""])
                task = cross_entropy(bound(w[:, : len(world.names)], images, labels, scale), labels)
                return task + weight * orthogonality(w[:, len(world.names)])

            theta, record.steps[number, i] = train(loss_of, server, *world.clients[i], batches, world.settings)
            sent.append(theta)
            counts.append(len(world.clients[i][1]))
        server = {"P": average([theta["P"] for theta in sent], counts)}
        record.rounds.append((server, [{} for _ in world.clients]))
    with torch.no_grad():
        mean = features(server["P"], world.all_names).mean(0)
    record.logits = [scale.detach() * world.images @ mean.T for _ in world.clients]
    return record
