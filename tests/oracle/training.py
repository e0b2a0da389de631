"""Softmax, optimizers and FedAvg, written out, and the input and output of an oracle's run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch


@dataclass
class Settings:
    """The settings of local training. rate_of: (round, client, step of the round) -> learning rate, if it varies."""

    learning_rate: float
    momentum: float
    weight_decay: float
    optimizer: str = "sgd"
    betas: tuple = ()
    eps: float = 0.0
    rate_of: Callable | None = None


@dataclass
class World:
    """The input of a run, in float64.

    names: names of the base classes. clients: (images [n, D], labels [n]) for each client; if a method reads more, the
    images have `pooled` [n, D] and `tokens` [n, …]. first: all initial values by name, for each client. schedule:
    {client: batches of image indices} for each round. generator: returns a new torch.Generator for a round and a
    client. all_names, base: every class name, and its index among the base classes or −1. images: the images to
    classify after the last round.
    """

    clip: object
    tokenizer: object
    names: list
    clients: list
    first: list
    schedule: list
    settings: Settings
    generator: Callable
    all_names: list
    base: list
    images: torch.Tensor


@dataclass
class Record:
    """The results of a run.

    steps: (round, client) -> (loss, gradient by name that the optimizer followed) for every step. rounds: the server's
    values by name and every client's own values, after each round. logits: logits of `World.images` over all class
    names, for each client.
    """

    steps: dict = field(default_factory=dict)
    rounds: list = field(default_factory=list)
    logits: list = field(default_factory=list)


def cross_entropy(logits, labels):
    """The mean over images of −log softmax(logits)[label]."""
    total = 0
    for row, label in zip(logits, labels, strict=True):
        total = total - row[label] + torch.log(torch.exp(row - row.max()).sum()) + row.max()
    return total / len(labels)


def gradients(loss, theta):
    """∇loss by name, with zeros for values on which the loss does not depend."""
    found = torch.autograd.grad(loss, list(theta.values()), retain_graph=True, allow_unused=True)
    pairs = zip(theta.items(), found, strict=True)
    return {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


def sgd(theta, gradient, memory, rate, step, settings):
    """g ← ∇ + λ θ, v ← m v + g, θ − η v, from v = 0."""
    g = gradient + settings.weight_decay * theta
    memory["v"] = settings.momentum * memory.get("v", 0) + g
    return theta - rate * memory["v"]


def adam(theta, gradient, memory, rate, step, settings):
    """Adam (Kingma and Ba 2015, algorithm 1), with the weight decay added to the gradient."""
    return _adam(theta, gradient + settings.weight_decay * theta, memory, rate, step, settings)


def adamw(theta, gradient, memory, rate, step, settings):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), with the decay scaled by the learning rate as in PyTorch."""
    return _adam(theta, gradient, memory, rate, step, settings) - rate * settings.weight_decay * theta


def _adam(theta, g, memory, rate, step, settings):
    first, second = settings.betas
    memory["m"] = first * memory.get("m", 0) + (1 - first) * g
    memory["v"] = second * memory.get("v", 0) + (1 - second) * g**2
    mean, square = memory["m"] / (1 - first**step), memory["v"] / (1 - second**step)
    return theta - rate * mean / (square**0.5 + settings.eps)


def train(loss_of, parameters, images, labels, batches, settings, direction_of=None, rate_of=None):
    """Local training of one client, with a new optimizer.

    loss_of: (θ, images, labels) -> loss, or its terms by name if direction_of is given. direction_of: (terms, θ) ->
    gradient. rate_of: step, from 0 -> learning rate, if it varies. Return θ, and (loss, gradient) for every step.
    """
    theta = {name: value.clone() for name, value in parameters.items()}
    memories = {name: {} for name in parameters}
    update = {"sgd": sgd, "adam": adam, "adamw": adamw}[settings.optimizer]
    steps = []
    for batch in batches:
        rate = settings.learning_rate if rate_of is None else rate_of(len(steps))
        for name in theta:
            theta[name] = theta[name].detach().requires_grad_(True)
        loss = loss_of(theta, images[batch], labels[batch])
        if direction_of is None:
            gradient = gradients(loss, theta)
        else:
            gradient, loss = direction_of(loss, theta), sum(loss.values())
        steps.append((loss.item(), {name: g.detach() for name, g in gradient.items()}))
        with torch.no_grad():
            for name in theta:
                theta[name] = update(theta[name], gradient[name], memories[name], rate, len(steps), settings)
    return {name: value.detach() for name, value in theta.items()}, steps


def average(values, counts):
    """FedAvg: Σ n_i v_i / Σ n_i."""
    total = torch.zeros_like(values[0])
    for value, count in zip(values, counts, strict=True):
        total += count * value
    return total / sum(counts)


def federate(world, shared, loss_of, logits_of, **train_options):
    """FedAvg of the values named in `shared`. Every client keeps its other values.

    loss_of: (θ, images, labels, the round's first θ, client) -> loss. logits_of: (θ, images, names, client) -> logits.
    train_options: options of `train`, each a function (round, client) -> value.
    """
    record = Record()
    server = {name: world.first[0][name] for name in shared}
    private = [{name: v for name, v in first.items() if name not in shared} for first in world.first]
    for number, work in enumerate(world.schedule, 1):
        sent, counts = [], []
        for i, batches in work.items():
            start = {**server, **private[i]}
            theta, record.steps[number, i] = train(
                lambda theta, x, y, start=start, i=i: loss_of(theta, x, y, start, i),
                start,
                *world.clients[i],
                batches,
                world.settings,
                rate_of=world.settings.rate_of and partial(world.settings.rate_of, number, i),
                **{name: option(number, i) for name, option in train_options.items()},
            )
            private[i] = {name: theta[name] for name in private[i]}
            sent.append(theta)
            counts.append(len(world.clients[i][1]))
        server = {name: average([theta[name] for theta in sent], counts) for name in shared}
        record.rounds.append((server, [dict(own) for own in private]))
    for i, own in enumerate(private):
        with torch.no_grad():
            record.logits.append(logits_of({**server, **own}, world.images, world.all_names, i))
    return record
