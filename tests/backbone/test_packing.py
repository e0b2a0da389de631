"""Arrangement of rows: every token is stored once, in a block with the rest of its class, and few rows are unused."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpgp.backbone.packing import fill, pack
from fedpgp.backbone.tokens import ClassTokens

START, EOS = 98, 99

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def tokens_of(lengths):
    """Return distinct class names of the given lengths, each followed by "." (97) and EOS."""
    rows = [[(7 * c + i) % 90 for i in range(length)] + [97, EOS] for c, length in enumerate(lengths)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [EOS] * (longest - len(row)) for row in rows])
    return ClassTokens(ids, torch.tensor([len(row) - 1 for row in rows]), tail=2)


def sequence_ending_at(packing, row):
    """Return the sequence that a row sees according to the mask: token ids, and −1−m for the m-th context vector."""
    content = packing.tokens.clone()
    content[packing.context_rows] = -1 - packing.vectors
    rows = len(content) // packing.blocks
    block, seen = row // rows, packing.mask.flatten(0, 1)[row] == 0
    ahead = content[: packing.prefix][seen[: packing.prefix]]
    own = content[block * rows : (block + 1) * rows][seen[packing.prefix :]]
    return [*ahead.tolist(), *own.tolist()]


@given(LENGTHS, st.integers(0, 40), st.sampled_from(["end", "middle", "front"]))
def test_each_eos_sees_its_own_sequence_and_nothing_else(lengths, M, position):
    tokens = tokens_of(lengths)
    packing = pack(tokens, M, position, START)
    vectors = [-1 - m for m in range(M)]
    ahead = {"end": M, "middle": M // 2, "front": 0}[position]
    for row, (name, tail) in zip(packing.ends.tolist(), tokens.split(), strict=True):
        expected = [START, *vectors[:ahead], *name, *vectors[ahead:], *tail]
        assert sequence_ending_at(packing, row) == expected
        assert packing.places[row] == len(expected) - 1
        assert tail == [97, EOS]
    assert packing.asking[packing.asked].tolist() == list(range(len(lengths)))
    per_block = len(packing.asking) // packing.blocks
    rows = len(packing.tokens) // packing.blocks
    assert (packing.asked // per_block).tolist() == (packing.ends // rows).tolist()


@given(LENGTHS, st.integers(1, 80))
def test_every_sequence_is_in_one_bin(lengths, first):
    bins = fill(lengths, first)
    assert sorted(c for chosen in bins for c in chosen) == list(range(len(lengths)))


def test_few_rows_are_unused():
    """Use the lengths of the class names of the embedded benchmark, and of a list of a thousand names."""
    for lengths, context in [([3] * 20 + [4] * 22 + [5] * 5 + [6] * 3, 16), ([3, 4, 5, 6, 9] * 200, 16), ([4] * 50, 4)]:
        packing = pack(tokens_of([length - 2 for length in lengths]), context, "end", START)
        needed = 1 + context + sum(lengths)
        assert needed <= len(packing.tokens) <= 1.04 * needed
