"""One generator per draw: a function of the seed, the purpose, and which one of its kind the draw is."""

import hashlib

import torch


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments.

    Draws are made apart for each purpose ("participation", "order", …) and index (round, client, class), so that a
    client's draws never depend on another client, another method or the order of the work.
    """
    text = "/".join([str(seed), purpose, *map(str, index)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
