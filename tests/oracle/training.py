"""Softmax, SGD and FedAvg, written out; and what goes into an oracle's run and comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Settings:
    """The numbers of local training."""

    learning_rate: float
    momentum: float
    weight_decay: float


@dataclass
class World:
    """Everything that a run is given, in float64.

    names: of the base classes; clients: (images [n, D], labels [n]) each, where a method reads more, images with
    `pooled` [n, D] and `tokens` [n, …]; first: per client, all first values by name;
    schedule: per round {client: batches of image numbers}; generator: a new torch.Generator for a round and a client;
    all_names, base: every class name, and its place among the base classes or −1; images: to classify at last.
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
    """What happened in a run.

    steps: (round, client) -> (loss, gradient by name that the optimizer followed) of every step; rounds: after each,
    the server's values by name and every client's own; logits: per client, of `World.images` over all class names.
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
    """∇loss by name, zero where the loss does not depend on a value."""
    found = torch.autograd.grad(loss, list(theta.values()), retain_graph=True, allow_unused=True)
    pairs = zip(theta.items(), found, strict=True)
    return {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


def train(loss_of, parameters, images, labels, batches, settings, direction_of=None, after_step=None):
    """Local training of one client: g ← ∇loss + λ θ, v ← m v + g, θ ← θ − η v, from v = 0.

    loss_of: (θ, images, labels) -> loss, or with direction_of its terms by name, which (terms, θ) makes a gradient of;
    after_step: θ -> values that replace some of it. Returns θ and (loss, gradient) of every step.
    """
    theta = {name: value.clone() for name, value in parameters.items()}
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    steps = []
    for batch in batches:
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
                velocity[name] = settings.momentum * velocity[name] + gradient[name]
                velocity[name] = velocity[name] + settings.weight_decay * theta[name]
                theta[name] = theta[name] - settings.learning_rate * velocity[name]
            if after_step is not None:
                theta = {**theta, **after_step(theta)}
    return {name: value.detach() for name, value in theta.items()}, steps


def average(values, counts):
    """FedAvg: Σ n_i v_i / Σ n_i."""
    total = torch.zeros_like(values[0])
    for value, count in zip(values, counts, strict=True):
        total += count * value
    return total / sum(counts)


def federate(world, shared, loss_of, logits_of, **train_options):
    """FedAvg of the values named in `shared`; every client keeps its others.

    loss_of: (θ, images, labels, the round's first θ, client) -> loss. logits_of: (θ, images, names, client) -> logits.
    train_options: what `train` takes, each a function (round, client) -> that option.
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
