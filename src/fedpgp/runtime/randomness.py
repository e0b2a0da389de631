"""Random generators: one for each draw, as a function of the seed, the purpose and the index of the draw."""

import hashlib

import torch


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a CPU generator that depends only on the arguments.

    Each purpose and index has its own generator. So the draws of a client never depend on another client, another
    method or the order of the work.

    Parameters
    ----------
    seed
        Seed of the run.
    purpose
        Purpose of the draw, such as "participation" or "order".
    index
        Numbers that identify the draw, such as round, client and class.
    """
    text = "/".join([str(seed), purpose, *map(str, index)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
