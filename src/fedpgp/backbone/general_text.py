"""Compute text features of prompts and class names for every text tower that is not CLIP-shaped.

CLIP's tower is causal, so classes share the computation of everything before their names (text.py). In a bidirectional
tower, every row depends on the whole sequence: no hidden state is the same for two classes, and nothing can be skipped.
Therefore each class is a complete sequence here, and the tower's own code computes it. The context vectors replace
the embeddings of filler tokens, before the tower adds position embeddings, masks and pools.

Letters: K prompts, C classes, M context vectors, S sequences, L positions, d token width, D feature width.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.backbone.layers import Prompt, kept_for_backward, recomputed
from fedpgp.backbone.tokens import ClassTokens, Position
from fedpgp.errors import CheckpointError

_SPLICING = threading.RLock()  # a hook on the embedding changes the tower for all threads


class Layout(NamedTuple):
    """Sequences of C classes.

    Attributes
    ----------
    ids
        [C, L], token ids.
    mask
        [C, L], 1 for a token and 0 for padding.
    places
        [C, M], positions of the context vectors.
    """

    ids: Tensor
    mask: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False)
class GeneralTextEncoder:
    """Frozen text tower of any dual encoder.

    Attributes
    ----------
    tower
        Module from ids [S, L] and mask [S, L] to features [S, D].
    embedding
        Token embedding of the tower.
    start
        Tokens before a text.
    filler
        A token without a special meaning.
    pad
        Token that fills a sequence up.
    positions
        Length of the longest sequence.
    padded
        Whether the tower attends to padding, so that all sequences must have the length `positions`.
    pads_ahead
        Whether the padding precedes the text.
    memory
        Bytes that a call may keep for its backward pass. If more are needed, sequences are encoded in pieces, and each
        piece is computed again in the backward pass.
    layers
        Layers that a method can change: none, because the tower's code belongs to another library.
    """

    tower: nn.Module
    embedding: nn.Module
    start: Sequence[int]
    filler: int
    pad: int
    positions: int
    padded: bool
    pads_ahead: bool = False
    memory: int = 2 * 2**30
    _kept: dict[int, int] = field(default_factory=dict, repr=False)

    layers = ()

    @property
    def tokens(self) -> Tensor:
        """Token embeddings [vocabulary, d]."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def token_width(self) -> int:
        """Width d of a token embedding and of a context vector."""
        return self.tokens.shape[1]

    @property
    def longest(self) -> int:
        """Length of the longest sequence, including one token before the text and [EOS]."""
        return self.positions + 1 - len(self.start)

    @property
    def products(self) -> torch.dtype:
        """Precision of the matrix products."""
        return self.tokens.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings [..., d] of token ids [...]."""
        with torch.no_grad():
            embedded = self.embedding(ids.to(self.tokens.device))
        assert isinstance(embedded, Tensor)
        return embedded

    def rows(self, context: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> int:
        """Return C · L, the number of rows of one context with these classes."""
        return self._layout(classes, Prompt.of(context).vectors.shape[-2], position).ids.numel()

    def __call__(self, contexts: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> Tensor:
        """Return the text features of contexts with the tokens of C classes.

        Gradients flow to the contexts.

        Parameters
        ----------
        contexts
            [K, M, d], or [K, C, M, d] with a context for each class.
        classes
            Tokens of C classes.
        position
            Position of the class name in the context.

        Returns
        -------
        Tensor
            [K, C, D], of unit length.

        Raises
        ------
        CheckpointError
            If a sequence is too long for the tower, or if the prompt has vectors or adapters in deeper layers.
        """
        vectors = _vectors_of(contexts)
        K, M, C = len(vectors), vectors.shape[-2], len(classes)
        layout = Layout(*(x.to(vectors.device) for x in self._layout(classes, M, position)))
        each = vectors[:, None].expand(-1, C, -1, -1) if vectors.dim() == 3 else vectors
        each, number = each.flatten(0, 1), torch.arange(K * C, device=vectors.device) % C
        together = max(1, self.memory // self._bytes(layout))
        if together >= K * C:
            features = self._encode(each, Layout(*(x[number] for x in layout)))
        else:
            pieces = zip(each.split(together), number.split(together), strict=True)
            features = torch.cat(
                [
                    recomputed(self._encode, Prompt(vectors), own, Layout(*(x[rows] for x in layout)))
                    for own, rows in pieces
                ]
            )
        return features.unflatten(0, (K, C))

    def each(
        self, contexts: Sequence[Tensor | Prompt], classes: ClassTokens, position: Position = "end"
    ) -> list[Tensor]:
        """Return the features [C, D] of each context, [M, d] or [C, M, d].

        Contexts of equal shape are encoded together.
        """
        vectors = [_vectors_of(context) for context in contexts]
        features: dict[int, Tensor] = {}
        for shape in dict.fromkeys(own.shape for own in vectors):
            group = [i for i, own in enumerate(vectors) if own.shape == shape]
            features |= zip(group, self(torch.stack([vectors[i] for i in group]), classes, position), strict=True)
        return [features[i] for i in range(len(vectors))]

    def _layout(self, classes: ClassTokens, context_length: int, position: Position) -> Layout:
        ahead = {"end": context_length, "middle": context_length // 2, "front": 0}[position]
        before, after = [self.filler] * ahead, [self.filler] * (context_length - ahead)
        names = classes.split()
        rows = [[*self.start, *before, *name, *after, *tail] for name, tail in names]
        first = [len(self.start) + ahead + len(name) for name, _ in names]
        longest = max(map(len, rows))
        if longest > self.positions:
            raise CheckpointError(
                f"a context of {context_length} vectors and the longest class name need {longest} positions, but the"
                f" checkpoint has {self.positions}",
                where="context_length",
                remedy="Shorten the context or the class names",
            )
        length = self.positions if self.padded else longest
        begins = range(len(self.start), len(self.start) + ahead)
        sizes = torch.tensor([len(row) for row in rows])[:, None]
        fill = [[self.pad] * (length - len(row)) for row in rows]
        ids = [[*pad, *row] if self.pads_ahead else [*row, *pad] for row, pad in zip(rows, fill, strict=True)]
        places = torch.tensor([[*begins, *range(end, end + len(after))] for end in first], dtype=torch.long)
        number = torch.arange(length).expand(len(rows), -1)
        if self.pads_ahead:
            return Layout(torch.tensor(ids), (number >= length - sizes).long(), places + length - sizes)
        return Layout(torch.tensor(ids), (number < sizes).long(), places)

    def _encode(self, contexts: Tensor, layout: Layout) -> Tensor:
        """Return the features [S, D] of sequences with contexts [S, M, d]."""

        def splice(module: nn.Module, arguments: Any, embedded: Tensor) -> Tensor:
            places = layout.places[..., None].expand(-1, -1, embedded.shape[-1])
            return embedded.scatter(1, places, contexts.to(embedded))

        with _SPLICING:
            hook = self.embedding.register_forward_hook(splice)
            try:
                features = self.tower(layout.ids, layout.mask)
            finally:
                hook.remove()
        return F.normalize(features.to(contexts.dtype), dim=-1)

    def _bytes(self, layout: Layout) -> int:
        """Return the bytes that one sequence of this length keeps for the backward pass, measured once per length."""
        length = layout.ids.shape[1]
        if length not in self._kept:
            frozen = (*self.tower.parameters(), *self.tower.buffers())
            places = {tensor.untyped_storage().data_ptr() for tensor in frozen}
            shape = (1, layout.places.shape[1], self.token_width)
            context = torch.zeros(shape, dtype=self.products, device=layout.ids.device, requires_grad=True)
            _, kept = kept_for_backward(lambda: self._encode(context, Layout(*(x[:1] for x in layout))))
            self._kept[length] = max(1, sum(size for place, size in kept.items() if place not in places))
        return self._kept[length]


def _vectors_of(context: Tensor | Prompt) -> Tensor:
    """Return the vectors of a prompt; raise CheckpointError if it has vectors or adapters in deeper layers."""
    prompt = Prompt.of(context)
    if prompt.layers > 1 or prompt.adapters:
        raise CheckpointError(
            "the text tower of this checkpoint does not support vectors or adapters in its layers, because it is not"
            " CLIP-shaped",
            where="backbone.checkpoint",
            remedy="Choose another method, or a CLIP-shaped checkpoint such as openai/clip-vit-base-patch16",
        )
    return prompt.vectors
