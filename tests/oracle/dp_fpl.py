"""DP-FPL (Tran et al., ICLR 2025, arXiv 2501.13904) with the gradient of each image, and noise on the client."""

import torch

from oracle.promptfl import logits_of
from oracle.training import Record, average, cross_entropy, gradients


def gram_schmidt(matrix):
    """Gram–Schmidt: normalize each column, and remove its direction from the later columns."""
    columns = [matrix[:, j] for j in range(matrix.shape[1])]
    for j in range(len(columns)):
        columns[j] = columns[j] / torch.sqrt((columns[j] ** 2).sum())
        for other in range(j + 1, len(columns)):
            columns[other] = columns[other] - torch.dot(columns[j], columns[other]) * columns[j]
    return torch.stack(columns, dim=1)


def clipped(vectors, C):
    """Some tensors as one vector, scaled down to the norm C if it is longer, and whether it was longer."""
    norm = torch.sqrt(sum((vector**2).sum() for vector in vectors))
    return ([vector * C / norm for vector in vectors], True) if norm > C else (list(vectors), False)


def normal(shape, generator):
    """Draw in float32 as the library does, so that both have the same numbers."""
    return torch.randn(*shape, generator=generator).double()


def direction(of_images, p_L, rank, C, z, generator, clips):
    """The gradients of p_G and p_L for the optimizer. of_images: the gradient [M, d] of every image."""
    M, d = p_L.shape
    B = len(of_images)
    u = gram_schmidt(p_L @ normal((d, rank), generator))
    v = gram_schmidt(p_L.T @ u).T
    sum_G, sum_u, sum_v = torch.zeros(M, d).double(), torch.zeros(M, rank).double(), torch.zeros(rank, d).double()
    for g in of_images:
        (one,), clip_G = clipped([g], C)
        # ∂/∂u_ma of a loss of p = u v + r is Σ_n g_mn v_an, ∂/∂v_an is Σ_m u_ma g_mn
        (of_u, of_v), clip_L = clipped([torch.einsum("mn,an->ma", g, v), torch.einsum("ma,mn->an", u, g)], C)
        sum_G, sum_u, sum_v = sum_G + one, sum_u + of_u, sum_v + of_v
        clips += [("G", clip_G), ("L", clip_L)]
    g_G = sum_G / B + z * C / B * normal((M, d), generator)
    g_u = sum_u / B + z * C / B * normal((M, rank), generator)
    g_v = sum_v / B + z * C / B * normal((rank, d), generator)
    return {"p_G": g_G, "p_L": g_u @ v + u @ g_v - u @ u.T @ g_u @ v}


def run(world, rank, C, z, clips):
    """clips: a list that gets, for the gradient of every image, whether it was clipped."""
    record, settings = Record(), world.settings
    p_G, private = world.first[0]["p_G"], [first["p_L"] for first in world.first]
    for number, work in enumerate(world.schedule, 1):
        sent, counts = [], []
        for i, batches in work.items():
            images, labels = world.clients[i]
            generator, steps = world.generator(number, i), []
            theta = {"p_G": p_G, "p_L": private[i]}
            velocity = {name: torch.zeros_like(value) for name, value in theta.items()}
            for batch in batches:
                theta = {name: value.detach().requires_grad_(True) for name, value in theta.items()}
                losses, of_images = [], []
                for k in batch.tolist():
                    logits = logits_of(world, theta["p_G"] + theta["p_L"], images[k : k + 1], world.names)
                    losses.append(cross_entropy(logits, labels[k : k + 1]))
                    found = gradients(losses[-1], theta)
                    assert torch.allclose(found["p_G"], found["p_L"])
                    of_images.append(found["p_L"])
                with torch.no_grad():
                    gradient = direction(of_images, theta["p_L"], rank, C, z, generator, clips)
                    steps.append((sum(losses).item() / len(losses), gradient))
                    for name in theta:
                        velocity[name] = settings.momentum * velocity[name] + gradient[name]
                        velocity[name] = velocity[name] + settings.weight_decay * theta[name]
                        theta[name] = theta[name] - settings.learning_rate * velocity[name]
            record.steps[number, i] = steps
            private[i] = theta["p_L"].detach()
            sent.append(theta["p_G"].detach())
            counts.append(len(labels))
        p_G = average(sent, counts)
        record.rounds.append(({"p_G": p_G}, [{"p_L": p_L} for p_L in private]))
    with torch.no_grad():
        record.logits = [logits_of(world, p_G + p_L, world.images, world.all_names) for p_L in private]
    return record
