"""Softmax, SGD and FedAvg, written out."""

from dataclasses import dataclass, field

import torch


@dataclass
class Settings:
    """The numbers of local training."""

    learning_rate: float
    momentum: float
    weight_decay: float


@dataclass
class Record:
    """What happened in a run: every step's loss and gradients in the order of the work, and all states after rounds."""

    losses: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    rounds: list = field(default_factory=list)


def cross_entropy(logits, labels):
    """The mean over images of −log softmax(logits)[label]."""
    total = 0
    for row, label in zip(logits, labels, strict=True):
        total = total - row[label] + torch.log(torch.exp(row - row.max()).sum()) + row.max()
    return total / len(labels)


def train(loss_of, parameters, images, labels, batches, settings, record):
    """Local training of one client: g ← ∇loss + λ θ, v ← m v + g, θ ← θ − η v, from v = 0."""
    theta = {name: value.clone() for name, value in parameters.items()}
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for batch in batches:
        for name in theta:
            theta[name] = theta[name].detach().requires_grad_(True)
        loss = loss_of(theta, images[batch], labels[batch])
        gradient = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        record.losses.append(loss.item())
        record.gradients.append(gradient)
        with torch.no_grad():
            for name in theta:
                velocity[name] = settings.momentum * velocity[name] + gradient[name]
                velocity[name] = velocity[name] + settings.weight_decay * theta[name]
                theta[name] = theta[name] - settings.learning_rate * velocity[name]
    return {name: value.detach() for name, value in theta.items()}


def average(prompts, counts):
    """FedAvg: Σ n_i p_i / Σ n_i."""
    total = torch.zeros_like(prompts[0])
    for prompt, count in zip(prompts, counts, strict=True):
        total += count * prompt
    return total / sum(counts)
