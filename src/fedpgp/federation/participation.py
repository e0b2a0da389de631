"""Participation."""

import torch

from fedpgp.randomness import generator


def participants(clients: int, participation: float, seed: int, round_number: int) -> list[int]:
    """The clients that take part in a round, ascending: a fraction of all, at least one, drawn per round."""
    count = max(1, round(participation * clients))
    order = torch.randperm(clients, generator=generator(seed, "participation", round_number))
    return sorted(order[:count].tolist())
