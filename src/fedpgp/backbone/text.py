"""Compute text features of prompts and class names: the same numbers as CLIP, with less work.

CLIP's text encoder is causal and reads the feature of a class at its EOS token. This saves work in four ways. Nothing
after EOS is computed. With the class name at the end, the hidden states of `[SOS] p_1 … p_M` are the same for every
class and are computed once per prompt. Numbers that depend on no context vector are computed once for all calls. The
last layer's queries, its MLP and the projection are computed only for EOS rows. All of this also holds if vectors are
replaced in deeper layers, because they precede the class name in every class, and if layers have adapters, which
process each row separately.

Letters: K prompts, C classes, M context vectors, L rows of a packing (packing.py), d token width, D feature width.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone.attention import attend
from fedpgp.backbone.layers import KEPT, Affine, Layers, Prompt, recomputed
from fedpgp.backbone.packing import Packing, pack
from fedpgp.backbone.tokens import ClassTokens, Position
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel


class PackedNames(NamedTuple):
    """Values that are the same in all calls with the same class names.

    Attributes
    ----------
    packing
        Arrangement of the rows.
    embeddings
        [L, d], input of the first layer, with zeros for context vectors.
    places
        [V, d], position embeddings of the context vectors.
    rows
        [L, 3d], queries, keys and values of the first layer; without meaning for context vectors.
    """

    packing: Packing
    embeddings: Tensor
    places: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Frozen text tower of a CLIP: plain tensors and a forward pass.

    Matrix products use the precision of `layers` and `projection`. Embeddings, normalizations and the sums between
    layers use the precision of the embeddings.

    Attributes
    ----------
    tokens
        [vocabulary, d], token embeddings.
    positions
        [longest sequence, d], position embeddings.
    layers
        The transformer layers.
    final_norm
        The normalization after the last layer.
    projection
        [D, d].
    start_token
        Token id of [SOS].
    memory
        Bytes that a call may keep for its backward pass. If more are needed, classes are encoded in pieces, and each
        piece is computed again in the backward pass.
    """

    tokens: Tensor
    positions: Tensor
    layers: Layers
    final_norm: Affine
    projection: Tensor
    start_token: int
    memory: int = 2 * 2**30
    _prepared: dict[Any, PackedNames] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: "CLIPModel", start_token: int, products: torch.dtype | None = None) -> "TextEncoder":
        """Create the text encoder of a CLIPModel of transformers.

        Parameters
        ----------
        model
            The model.
        start_token
            Start token of the tokenizer. The value in OpenAI's configs is wrong: they say 0, but the tokenizer uses
            49406.
        products
            Precision of the matrix products; None means the precision of the weights.

        Raises
        ------
        CheckpointError
            If the text tower is not CLIP-shaped.
        """
        state = {name: weight.detach() for name, weight in model.state_dict().items()}
        return cls.of_state(state, model.config.text_config, start_token, products)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], config: Any, start_token: int, products: torch.dtype | None = None
    ) -> "TextEncoder":
        """Create the text encoder from weights with the names of a CLIPModel, and the config of its text tower."""
        tokens = state["text_model.embeddings.token_embedding.weight"]
        products = products or tokens.dtype
        return cls(
            tokens=tokens,
            positions=state["text_model.embeddings.position_embedding.weight"],
            layers=Layers.of(state, "text_model", config, products),
            final_norm=Affine.of(state, "text_model.final_layer_norm"),
            projection=state["text_projection.weight"].to(products),
            start_token=start_token,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": {}}

    @property
    def token_width(self) -> int:
        """Width d of a token embedding and of a context vector."""
        return self.tokens.shape[1]

    @property
    def products(self) -> torch.dtype:
        """Precision of the matrix products."""
        return self.projection.dtype

    @property
    def longest(self) -> int:
        """Length of the longest sequence, including [SOS] and [EOS]."""
        return len(self.positions)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the token embeddings [..., d] of token ids [...]."""
        return F.embedding(ids.to(self.tokens.device), self.tokens)

    def rows(self, context: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> int:
        """Return L, the number of rows of one context with these classes."""
        vectors = Prompt.of(context).vectors
        return len(self._prepare(classes, vectors.shape[-2], position, vectors.dim() == 3).embeddings)

    def rows_within(self, memory: int) -> int:
        """Return how many rows, of all prompts together, fit in the given bytes for the backward pass."""
        return max(1, memory // (KEPT * len(self.layers) * self.token_width * self.projection.element_size()))

    def __call__(self, contexts: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> Tensor:
        """Return the text features of contexts with the tokens of C classes.

        Gradients flow to the contexts and to the other tensors of a `Prompt`; the encoder's own weights are frozen.

        Parameters
        ----------
        contexts
            [K, M, d]; or [K, C, M, d] with a context for each class; or K prompts with the same adapters as one
            `Prompt`, whose tensors have K as their first dimension.
        classes
            Tokens of C classes.
        position
            Position of the class name in the context. "middle", "front" and class-specific contexts are slower, because
            the classes share less of a prompt.

        Returns
        -------
        Tensor
            [K, C, D], of unit length.

        Raises
        ------
        CheckpointError
            If a sequence is too long for the encoder.
        """
        prompt = Prompt.of(contexts)
        vectors = prompt.vectors
        K, M, C = len(vectors), vectors.shape[-2], len(classes)
        if not K:
            return vectors.new_empty(0, C, len(self.projection))
        length = 1 + M + classes.ids.shape[1]
        if length > self.longest:
            raise CheckpointError(
                f"a context of {M} vectors and the longest class name need {length} positions, but the checkpoint has"
                f" {self.longest}",
                where="context_length",
                remedy="Shorten the context or the class names",
            )
        specific = vectors.dim() == 4
        prepared = self._prepare(classes, M, position, specific)
        rows, allowed = len(prepared.embeddings), self.rows_within(self.memory)
        if K * rows <= allowed:
            return self._encode(prompt, prepared)
        features = []
        together = max(1, allowed // rows)
        for start in range(0, K, together):
            here, parts = slice(start, start + together), []
            deeper = None if prompt.deeper is None else prompt.deeper[here]
            for piece in _pieces(C, math.ceil(C * min(1.0, allowed / rows))):
                part = self._prepare(classes.select(piece), M, position, specific)
                own = vectors[here, piece.start : piece.stop] if specific else vectors[here]
                parts.append(recomputed(self._encode, prompt, replace(prompt, vectors=own, deeper=deeper), part))
            features.append(torch.cat(parts, dim=1))
        return torch.cat(features)

    def each(
        self, contexts: Sequence[Tensor | Prompt], classes: ClassTokens, position: Position = "end"
    ) -> list[Tensor]:
        """Return the features [C, D] of each context: [M, d], [C, M, d], or a prompt for several layers.

        Contexts of equal shape are encoded together; a prompt with adapters is encoded separately.

        Raises
        ------
        CheckpointError
            If a prompt is deeper than the tower.
        """
        prompts = [Prompt.of(context) for context in contexts]
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            self.layers.check_depth(prompt, "text")
            deeper_shape = None if prompt.deeper is None else prompt.deeper.shape
            groups[prompt.vectors.shape, deeper_shape, i if prompt.adapters else None].append(i)
        features: dict[int, Tensor] = {}
        for group in groups.values():
            deeper = [part for i in group if (part := prompts[i].deeper) is not None]
            together = Prompt(
                torch.stack([prompts[i].vectors for i in group]),
                torch.stack(deeper) if deeper else None,
                prompts[group[0]].adapters,
            )
            features |= zip(group, self(together, classes, position), strict=True)
        return [features[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _prepare(self, classes: ClassTokens, context_length: int, position: Position, specific: bool) -> PackedNames:
        tokens = (classes.ids.numpy().tobytes(), classes.end.numpy().tobytes(), classes.tail, classes.head)
        key = (*tokens, context_length, position, specific)
        if key not in self._prepared:
            if len(self._prepared) >= 64:  # a task needs few entries; this limits a process with many tasks
                self._prepared.clear()
            packing = pack(classes, context_length, position, self.start_token, specific).to(self.tokens)
            embeddings = self.embed(packing.tokens) + self.positions[packing.places]
            embeddings[packing.context_rows] = 0
            self._prepared[key] = PackedNames(
                packing=packing,
                embeddings=embeddings,
                places=self.positions[packing.places[packing.context_rows]],
                rows=self.layers.rows(embeddings, 0),
            )
        return self._prepared[key]

    def _encode(self, prompt: Prompt, prepared: PackedNames) -> Tensor:
        """Return the features [K, C, D] of K prompts with vectors [K, M, d] or [K, C, M, d]."""
        packing, layers, deeper = prepared.packing, self.layers, prompt.deeper
        vectors = prompt.vectors.flatten(1, -2)[:, packing.vectors] + prepared.places
        x = _put(vectors, packing.context_rows, prepared.embeddings)
        if deeper is not None:
            numbers = packing.vectors % prompt.vectors.shape[-2]
            replaced = numbers < deeper.shape[-2]
            replaced_rows, numbers = packing.context_rows[replaced], numbers[replaced]

        def entering(x: Tensor, layer: int) -> Tensor:
            """Return the input of a layer, in which the layer's vectors replace the first context vectors."""
            if deeper is None or not 0 < layer <= deeper.shape[1]:
                return x
            return x.index_copy(1, replaced_rows, deeper[:, layer - 1, numbers].to(x))

        last = len(layers) - 1
        for number in range(last):
            if number == 0:
                rows = _put(layers.rows(vectors, 0), packing.context_rows, prepared.rows)
            else:
                x = entering(x, number)
                rows = layers.rows(x, number)
            seen = attend(None, packing.in_blocks(rows), packing.prefix, packing.mask, layers.heads)
            x = layers.after_attention(x, seen.flatten(1, 2), number, prompt.adapters.get(number))

        x = entering(x, last)
        queries, rows = layers.asked(x, last, lambda normal: normal[:, packing.ends])
        queries, rows = packing.in_blocks(queries[:, packing.asking]), packing.in_blocks(rows)
        seen = attend(queries, rows, packing.prefix, packing.end_mask, layers.heads).flatten(1, 2)
        x = layers.after_attention(x[:, packing.ends], seen[:, packing.asked], last, prompt.adapters.get(last))
        normal = layers.normalise(x, self.final_norm)
        features = F.linear(normal.to(self.projection.dtype), self.projection)
        return F.normalize(features.to(prompt.vectors.dtype), dim=-1)


def _put(values: Tensor, rows: Tensor, into: Tensor) -> Tensor:
    """Return [K, L, w]: copies of `into` [L, w] for all prompts, with some rows replaced by `values` [K, V, w]."""
    return into.expand(len(values), -1, -1).index_copy(1, rows, values)


def _pieces(count: int, size: int) -> Iterator[range]:
    """Split 0 … count−1 into ranges of about equal size, at most `size`."""
    pieces = math.ceil(count / size)
    return (range(i * count // pieces, (i + 1) * count // pieces) for i in range(pieces))
