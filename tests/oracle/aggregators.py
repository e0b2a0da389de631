"""PromptFL with the aggregators of the papers, clients and server in one plain loop."""

import torch

from oracle.promptfl import logits_of
from oracle.training import average, cross_entropy, gradients


def local_training(world, start, images, labels, batches, turn):
    """SGD with momentum and weight decay on the corrected gradient. Return the result and the mean gradient."""
    p, velocity, total = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for batch in batches:
        p = p.detach().requires_grad_(True)
        loss = cross_entropy(logits_of(world, p, images[batch], world.names), labels[batch])
        g = gradients(loss, {"p": p})["p"]
        total = total + g
        with torch.no_grad():
            step = turn(g, p) + world.settings.weight_decay * p
            velocity = world.settings.momentum * velocity + step
            p = p - world.settings.learning_rate * velocity
    return p.detach(), total / len(batches)


def run(world, name, hyper):
    """Return p_G after every round. name, hyper: name and settings of the aggregator, as in the config."""
    x = world.first[0]["p_G"]
    N = len(world.clients)
    zero = torch.zeros_like(x)
    c, own = zero, [zero for _ in range(N)]  # SCAFFOLD's and FedDyn's controls
    m, v, h = zero, torch.full_like(x, hyper.get("tau", 0.0) ** 2), zero
    found = []
    for work in world.schedule:
        ends, counts, moved = [], [], []
        for i, batches in work.items():

            def turn(g, p, i=i, x=x, c=c):
                if name == "scaffold":
                    return g - own[i] + c
                if name == "feddyn":
                    return g - own[i] + hyper["alpha"] * (p - x)
                return g

            y, mean = local_training(world, x, *world.clients[i], batches, turn)
            if name == "scaffold":
                moved.append(mean - own[i])
                own[i] = mean
            if name == "feddyn":
                own[i] = own[i] - hyper["alpha"] * (y - x)
            ends.append(y)
            counts.append(len(world.clients[i][1]))
        weighted, uniform = average(ends, counts), average(ends, [1] * len(ends))
        delta = weighted - x
        if name == "fedavg":
            x = weighted if hyper["weighting"] == "examples" else uniform
        elif name == "fedavgm":
            m = hyper["server_momentum"] * m + delta
            x = x + hyper["server_learning_rate"] * m
        elif name in ("fedadam", "fedyogi"):
            m = hyper["beta1"] * m + (1 - hyper["beta1"]) * delta
            if name == "fedadam":
                v = hyper["beta2"] * v + (1 - hyper["beta2"]) * delta**2
            else:
                v = v - (1 - hyper["beta2"]) * delta**2 * torch.sign(v - delta**2)
            x = x + hyper["server_learning_rate"] * m / (torch.sqrt(v) + hyper["tau"])
        elif name == "scaffold":
            x = x + hyper["server_learning_rate"] * sum(y - x for y in ends) / len(ends)
            c = c + sum(moved) / N
        elif name == "feddyn":
            h = h - hyper["alpha"] * sum(y - x for y in ends) / N
            x = uniform - h / hyper["alpha"]
        else:
            kept = int(hyper["trim"] * len(ends)) if name == "trimmed-mean" else (len(ends) - 1) // 2
            values = [
                sorted(column)[kept : len(column) - kept]
                for column in torch.stack([y.flatten() for y in ends]).T.tolist()
            ]
            x = torch.tensor([sum(column) / len(column) for column in values], dtype=x.dtype).reshape(x.shape)
        found.append(x)
    return found
