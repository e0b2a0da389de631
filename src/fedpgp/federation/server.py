"""Participation and aggregation."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpgp.randomness import generator


def participants(clients: int, participation: float, seed: int, round_number: int) -> list[int]:
    """The clients that take part in a round, ascending: a fraction of all, at least one, drawn per round."""
    count = max(1, round(participation * clients))
    order = torch.randperm(clients, generator=generator(seed, "participation", round_number))
    return sorted(order[:count].tolist())


def federated_average(shared: Sequence[Mapping[str, Tensor]], examples: Sequence[int]) -> dict[str, Tensor]:
    """p_G = Σ (n_i / Σn) p_G,i over the clients that took part (FedAvg, McMahan et al. 2017, algorithm 1)."""
    total = sum(examples)
    return {
        name: torch.stack([n / total * tensors[name] for tensors, n in zip(shared, examples, strict=True)]).sum(0)
        for name in shared[0]
    }
