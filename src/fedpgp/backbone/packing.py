"""Arrange the rows of many short sequences so that they can be computed together.

Every class is a sequence `[SOS] p_1 … p_M [class tokens] . [EOS]`. The prefix, which is the start of all sequences, is
stored once. The rest of each class follows, cut at EOS. The rows fill blocks of equal size, no class is split between
two blocks, and attention is computed per block. The blocks are chosen so that few rows are unused.

Letters: C classes, M context vectors, P rows of the prefix, N blocks, B rows of a block, E most classes in a block.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedpgp.backbone.tokens import ClassTokens, Position

TARGET = 32  # rows of a block; smaller blocks copy the prefix more often, larger ones compute more masked attention


@dataclass(frozen=True)
class Packing:
    """Arrangement of the rows of C classes after a shared prefix, in N blocks of B rows.

    Attributes
    ----------
    prefix
        P; the prefix is the first P rows of the first block.
    blocks
        N.
    tokens
        [N·B], token id of each row; arbitrary for context vectors and unused rows.
    places
        [N·B], position of each row in its sequence.
    context_rows
        [V], rows that contain a context vector.
    vectors
        [V], numbers of these context vectors: the m-th vector has the number m, or c·M + m in class c if each class has
        its own context.
    mask
        [N, B, P + B], 0 where a row sees a row of the prefix or of its block, −∞ elsewhere.
    ends
        [C], row of each class's EOS.
    asking
        [N·E], the e-th class of each block; arbitrary if a block has fewer classes.
    asked
        [C], position of each class in `asking`.
    """

    prefix: int
    blocks: int
    tokens: Tensor
    places: Tensor
    context_rows: Tensor
    vectors: Tensor
    mask: Tensor
    ends: Tensor
    asking: Tensor
    asked: Tensor

    @cached_property
    def end_mask(self) -> Tensor:
        """The mask [N, E, P + B] of the rows selected by `asking`."""
        return self.in_blocks(self.mask.flatten(0, 1)[None, self.ends[self.asking]])[0]

    def in_blocks(self, x: Tensor) -> Tensor:
        """Reshape [K, N·R, w] to [K, N, R, w]."""
        return x.unflatten(1, (self.blocks, -1))

    def to(self, like: Tensor) -> "Packing":
        """Return a copy on the device of a tensor, with the mask in its precision."""
        tensors = {name: x.to(like.device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Packing(**vars(self) | tensors | {"mask": self.mask.to(like)})


def pack(
    classes: ClassTokens, context_length: int, position: Position, start_token: int, class_specific: bool = False
) -> Packing:
    """Arrange [SOS], the context and the classes.

    Tokens before every class name are shared together with the whole context.

    Parameters
    ----------
    classes
        Tokens of the classes.
    context_length
        M.
    position
        Position of the class name in the context. With "end", the classes share the whole context. With "middle", they
        share its first half, and with "front", only [SOS]. The rest is stored for each class.
    start_token
        Token id of [SOS].
    class_specific
        Whether each class has its own context, so that the classes share only [SOS].
    """
    ahead = {"end": context_length, "middle": context_length // 2, "front": 0}[position]
    shared = 0 if class_specific else ahead

    def vectors(c: int) -> list[int]:  # the v-th vector is stored as the token id −1 − v
        first = c * context_length if class_specific else 0
        return [-1 - first - m for m in range(context_length)]

    names = classes.split()
    head = names[0][0][: classes.head] if shared == context_length else []
    P, prefix = 1 + shared + len(head), [start_token, *vectors(0)[:shared], *head]
    behind = [
        [*vectors(c)[shared:ahead], *name[len(head) :], *vectors(c)[ahead:], *tail]
        for c, (name, tail) in enumerate(names)
    ]
    bins = fill([len(sequence) for sequence in behind], P)
    N, E = len(bins), max(map(len, bins))
    B = max(sum(len(behind[c]) for c in chosen) + (0 if n else P) for n, chosen in enumerate(bins))

    content = torch.zeros(N, B, dtype=torch.long)
    places = torch.zeros(N, B, dtype=torch.long)
    owner = torch.full((N, B), -1)  # the class of each row
    ends = torch.zeros(len(behind), dtype=torch.long)
    asking, asked = torch.zeros(N * E, dtype=torch.long), torch.zeros(len(behind), dtype=torch.long)
    content[0, :P], places[0, :P] = torch.tensor(prefix), torch.arange(P)
    for n, chosen in enumerate(bins):
        row = 0 if n else P
        for e, c in enumerate(chosen):
            here = slice(row, row + len(behind[c]))
            content[n, here], owner[n, here] = torch.tensor(behind[c]), c
            places[n, here] = torch.arange(P, P + len(behind[c]))
            row = here.stop
            ends[c], asking[n * E + e], asked[c] = n * B + row - 1, c, n * E + e

    earlier = torch.ones(B, B, dtype=torch.bool).tril()
    sees_own = (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None] & earlier
    sees_prefix = torch.ones(N, B, P, dtype=torch.bool)
    sees_prefix[0, :P] = earlier[:P, :P]
    flat = content.flatten()
    return Packing(
        prefix=P,
        blocks=N,
        tokens=flat.clamp(min=0),
        places=places.flatten(),
        context_rows=(flat < 0).nonzero().flatten(),
        vectors=-1 - flat[flat < 0],
        mask=torch.zeros(N, B, P + B).masked_fill_(~torch.cat([sees_prefix, sees_own], dim=-1), -torch.inf),
        ends=ends,
        asking=asking,
        asked=asked,
    )


def fill(lengths: Sequence[int], first: int) -> list[list[int]]:
    """Distribute sequences among bins of about equal load.

    The number of bins minimizes the number of unused rows if all bins are as large as the fullest.

    Parameters
    ----------
    lengths
        Length of each sequence.
    first
        Load of the first bin before the distribution.

    Returns
    -------
    list
        The numbers of the sequences in each bin.
    """
    total = first + sum(lengths)
    smallest = max(first, *lengths)
    candidates = {max(1, round(total / size)) for size in range(max(smallest, TARGET // 2), max(smallest, TARGET) + 9)}
    return min((_distribute(lengths, first, count) for count in sorted(candidates)), key=lambda found: found[0])[1]


def _distribute(lengths: Sequence[int], first: int, count: int) -> tuple[int, list[list[int]]]:
    """Distribute sequences, longest first, each to the emptiest bin; return the rows of all bins, and the bins."""
    heap = [(first, 0), *((0, n) for n in range(1, count))]
    heapq.heapify(heap)
    bins: list[list[int]] = [[] for _ in range(count)]
    for c in sorted(range(len(lengths)), key=lambda c: -lengths[c]):
        load, n = heapq.heappop(heap)
        bins[n].append(c)
        heapq.heappush(heap, (load + lengths[c], n))
    return count * max(load for load, _ in heap), bins
