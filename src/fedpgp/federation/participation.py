"""Participation."""

import torch

from fedpgp.runtime.randomness import generator


def participants(clients: int, participation: float, rounding: str, seed: int, round_number: int) -> list[int]:
    """The clients that take part in a round, ascending: a fraction of all, at least one, drawn per round.

    rounding: of participation * clients to a whole number: "nearest", where a half goes to the even number, or "down".
    "down" is what the authors' code does, floating point included: int(0.29 * 100) is 28.
    """
    count = max(1, int(participation * clients) if rounding == "down" else round(participation * clients))
    order = torch.randperm(clients, generator=generator(seed, "participation", round_number))
    return sorted(order[:count].tolist())
