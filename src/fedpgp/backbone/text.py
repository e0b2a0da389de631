"""Prompts x class names -> text features: CLIP's own numbers with less work.

CLIP's text encoder is causal and reads a class at its EOS token. So nothing behind EOS is computed; with the class name
at the end the hidden states of `[SOS] p_1 … p_M` are the same for every class and are computed once per prompt; what
depends on no context vector is computed once for all calls; and the last layer's queries, its MLP and the projection
are computed for EOS rows alone. All of this holds too where vectors are replaced in deeper layers, because they stand
before the class name for every class alike, and where layers have adapters, which work row by row.

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
    """What is the same in all calls with the same class names: where rows lie, and their first numbers.

    embeddings: [L, d] with zeros for context vectors; places: [V, d] position embeddings of the context vectors;
    rows: [L, 3d] queries, keys and values of the first layer, of no meaning where a context vector stands.
    """

    packing: Packing
    embeddings: Tensor
    places: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """The frozen text tower of a CLIP: plain tensors and a forward pass.

    Matrix products work in the precision of `layers` and `projection`; embeddings, normalisations and the sums between
    layers in that of the embeddings.

    memory: bytes that a call keeps for its backward pass; longer class lists are encoded piece by piece, and each piece
    once more when gradients are asked for.
    """

    tokens: Tensor  # [vocabulary, d]
    positions: Tensor  # [longest sequence, d]
    layers: Layers
    final_norm: Affine
    projection: Tensor  # [D, d]
    start_token: int
    memory: int = 2 * 2**30
    _prepared: dict[Any, PackedNames] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: "CLIPModel", start_token: int, products: torch.dtype | None = None) -> "TextEncoder":
        """The text tower of a transformers CLIPModel; raises CheckpointError for one that is not CLIP-shaped.

        start_token: the tokenizer's. The config's is not to be trusted: OpenAI's say 0, their tokenizer 49406.
        products: precision of the matrix products; None takes that of the weights.
        """
        state = {name: weight.detach() for name, weight in model.state_dict().items()}
        return cls.of_state(state, model.config.text_config, start_token, products)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], config: Any, start_token: int, products: torch.dtype | None = None
    ) -> "TextEncoder":
        """The text tower from weights with the names of a transformers CLIPModel; config: that of its text tower."""
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
        """d, the width of a token embedding and of a context vector."""
        return self.tokens.shape[1]

    @property
    def products(self) -> torch.dtype:
        """The precision of the matrix products."""
        return self.projection.dtype

    @property
    def longest(self) -> int:
        """The longest sequence that the encoder reads, [SOS] and [EOS] included."""
        return len(self.positions)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> token embeddings [..., d]."""
        return F.embedding(ids.to(self.tokens.device), self.tokens)

    def rows(self, context: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> int:
        """L, the rows that one context takes with these classes."""
        vectors = Prompt.of(context).vectors
        return len(self._prepare(classes, vectors.shape[-2], position, vectors.dim() == 3).embeddings)

    def rows_within(self, memory: int) -> int:
        """How many rows of all prompts together keep no more than so many bytes for the backward pass."""
        return max(1, memory // (KEPT * len(self.layers) * self.token_width * self.projection.element_size()))

    def __call__(self, contexts: Tensor | Prompt, classes: ClassTokens, position: Position = "end") -> Tensor:
        """Contexts [K, M, d] and the tokens of C classes -> text features [K, C, D] of unit length.

        contexts: or [K, C, M, d], one for each class, or K prompts with the same adapters as one `Prompt`, whose
        tensors have K as their first dimension. position: of the class name in the context. "middle", "front" and
        contexts of their own are slower: the classes share less of a prompt.
        Gradients flow to the contexts and what else is given; the encoder's own weights are frozen. Raises
        CheckpointError if the sequence is longer than the encoder reads.
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
        """The features [C, D] of each of some contexts: [M, d], [C, M, d], or prompts of several layers.

        Those of one shape are read together, but for prompts with adapters, each of which is read alone. Raises
        CheckpointError for a prompt that is deeper than the tower.
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
            if len(self._prepared) >= 64:  # a task needs few; whoever meets many tasks in a process needs no more
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
        """K prompts with vectors [K, M, d] or [K, C, M, d] -> [K, C, D]"""
        packing, layers, deeper = prepared.packing, self.layers, prompt.deeper
        vectors = prompt.vectors.flatten(1, -2)[:, packing.vectors] + prepared.places
        x = _put(vectors, packing.context_rows, prepared.embeddings)
        if deeper is not None:
            numbers = packing.vectors % prompt.vectors.shape[-2]
            replaced = numbers < deeper.shape[-2]
            replaced_rows, numbers = packing.context_rows[replaced], numbers[replaced]

        def entering(x: Tensor, layer: int) -> Tensor:
            """What goes into a layer: with the vectors of that layer in the place of the context's first."""
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
    """[K, L, w]: the same rows for all prompts [L, w], but for those that are given [K, V, w]."""
    return into.expand(len(values), -1, -1).index_copy(1, rows, values)


def _pieces(count: int, size: int) -> Iterator[range]:
    """0 … count−1 in ranges of about equal size, at most `size`."""
    pieces = math.ceil(count / size)
    return (range(i * count // pieces, (i + 1) * count // pieces) for i in range(pieces))
