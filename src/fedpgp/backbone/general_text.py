"""Prompts x class names -> text features, by the model's own modules: for every text tower that is not CLIP-shaped.

CLIP's tower is causal, so that classes share what stands ahead of their names (text.py). A bidirectional tower reads
the whole sequence in every row: no hidden state is the same for two classes, and nothing can be left out. So each class
is a whole sequence here, and the tower's own code computes it. The context vectors take the place of the embeddings of
filler tokens, whatever the tower then adds to these, masks and pools.

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

_SPLICING = threading.RLock()  # a hook on the embedding changes the tower for every thread that reads with it


class Layout(NamedTuple):
    """The sequences of C classes. ids, mask: [C, L]; places: [C, M], where the context vectors stand."""

    ids: Tensor
    mask: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False)
class GeneralTextEncoder:
    """The frozen text tower of any dual encoder.

    tower: ids [S, L] and mask [S, L] -> features [S, D]; embedding: its token embedding.
    start: tokens ahead of a text; filler: a token without a special meaning; pad: what fills a sequence up.
    positions: the longest sequence. padded: the tower attends to padding, so all sequences are filled up to that.
    pads_ahead: the padding stands ahead of the text.
    memory: bytes that a call keeps for its backward pass; with more, sequences are encoded piece by piece, and each
    piece once more when gradients are asked for.
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

    layers = ()  # that vectors or adapters of a method can enter: the tower's code is not ours

    @property
    def tokens(self) -> Tensor:
        """[vocabulary, d]"""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def token_width(self) -> int:
        """d, the width of a token embedding and of a context vector."""
        return self.tokens.shape[1]

    @property
    def longest(self) -> int:
        """The longest sequence that the encoder reads, with one token ahead of the text and [EOS] included."""
        return self.positions + 1 - len(self.start)

    @property
    def products(self) -> torch.dtype:
        """The precision of the matrix products."""
        return self.tokens.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> token embeddings [..., d], as they go into the tower."""
        with torch.no_grad():
            embedded = self.embedding(ids.to(self.tokens.device))
        assert isinstance(embedded, Tensor)
        return embedded

    def rows(self, context: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> int:
        """C · L, the rows that one context takes with these classes."""
        return self._layout(classes, Prompt.of(context).vectors.shape[-2], position).ids.numel()

    def __call__(self, contexts: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> Tensor:
        """Contexts [K, M, d] or [K, C, M, d] and the tokens of C classes -> text features [K, C, D] of unit length.

        position: of the class name in the context. Gradients flow to the contexts. Raises CheckpointError for a
        sequence that is longer than the tower reads, and for vectors or adapters in deeper layers.
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
        """The features [C, D] of each of some contexts, [M, d] or [C, M, d]; those of one shape are read together."""
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
        """[S, M, d] -> [S, D]"""

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
        """That one sequence of this length keeps for the backward pass, counted once for each length."""
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
    """Raises CheckpointError for a prompt with vectors or adapters in deeper layers."""
    prompt = Prompt.of(context)
    if prompt.layers > 1 or prompt.adapters:
        raise CheckpointError(
            "the text tower of this checkpoint does not support vectors or adapters in its layers, because it is not"
            " CLIP-shaped",
            where="backbone.checkpoint",
            remedy="Choose another method, or a CLIP-shaped checkpoint such as openai/clip-vit-base-patch16",
        )
    return prompt.vectors
