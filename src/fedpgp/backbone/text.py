"""Prompts x class names -> text features: CLIP's own numbers with less work.

CLIP's text encoder is causal and reads a class at its EOS token. So nothing behind EOS is computed; with the class name
at the end the hidden states of `[SOS] p_1 … p_M` are the same for every class and are computed once per prompt; what
depends on no context vector is computed once for all calls; and the last layer's queries, its MLP and the projection
are computed for EOS rows alone.

Letters: K prompts, C classes, M context vectors, L rows of a packing (packing.py), d token width, D feature width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.backbone.attention import attend
from fedpgp.backbone.packing import Packing, pack
from fedpgp.backbone.tokens import ClassTokens, Position
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel

# OpenAI's approximation of GELU, x·σ(1.702 x), is silu(1.702 x) / 1.702: the factors go into the weights around it.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "quick_gelu": (F.silu, 1.702),
    "gelu": (F.gelu, 1.0),
}
KEPT = 12  # numbers of width d that a row keeps in each layer for the backward pass: 11 to 12 by count


class Affine(NamedTuple):
    """A weight [out, in] and its bias, or the gain and the bias of a normalisation."""

    weight: Tensor
    bias: Tensor


class Layer(NamedTuple):
    """A transformer layer. rows: queries, which hold the attention's scale, keys and values in one product."""

    norm1: Affine
    rows: Affine
    out: Affine
    norm2: Affine
    up: Affine
    down: Affine


class Prepared(NamedTuple):
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
    layers: Sequence[Layer]
    final_norm: Affine
    projection: Tensor  # [D, d]
    activation: Callable[[Tensor], Tensor]
    heads: int
    epsilon: float
    start_token: int
    memory: int = 2 * 2**30
    _prepared: dict[Any, Prepared] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: "CLIPModel", start_token: int, products: torch.dtype | None = None) -> "TextEncoder":
        """The text tower of a transformers CLIPModel; raises CheckpointError for one that is not CLIP-shaped.

        start_token: the tokenizer's. The config's is not to be trusted: OpenAI's say 0, their tokenizer 49406.
        products: precision of the matrix products; None takes that of the weights.
        """
        config: Any = model.config.text_config
        if config.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"hidden_act of the checkpoint's text_config must be one of {', '.join(ACTIVATIONS)},"
                f" got {config.hidden_act!r}"
            )
        activation, factor = ACTIVATIONS[config.hidden_act]
        state = {name: weight.detach() for name, weight in model.state_dict().items()}
        tokens = state["text_model.embeddings.token_embedding.weight"]
        products = products or tokens.dtype
        scale = 1 / math.sqrt(tokens.shape[1] // config.num_attention_heads)

        def affine(name: str, factor: float = 1.0, of_bias: float | None = None) -> Affine:
            weight, bias = state[f"text_model.{name}.weight"], state[f"text_model.{name}.bias"]
            return Affine(weight * factor, bias * (factor if of_bias is None else of_bias))

        def layer(number: int) -> Layer:
            name = f"encoder.layers.{number}."
            parts = [affine(f"{name}self_attn.{part}_proj", scale if part == "q" else 1.0) for part in "qkv"]
            rows = Affine(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
            return Layer(
                norm1=affine(f"{name}layer_norm1"),
                rows=_to(rows, products),
                out=_to(affine(f"{name}self_attn.out_proj"), products),
                norm2=affine(f"{name}layer_norm2"),
                up=_to(affine(f"{name}mlp.fc1", factor), products),
                down=_to(affine(f"{name}mlp.fc2", 1 / factor, of_bias=1.0), products),
            )

        return cls(
            tokens=tokens,
            positions=state["text_model.embeddings.position_embedding.weight"],
            layers=tuple(layer(number) for number in range(config.num_hidden_layers)),
            final_norm=affine("final_layer_norm"),
            projection=state["text_projection.weight"].to(products),
            activation=activation,
            heads=config.num_attention_heads,
            epsilon=config.layer_norm_eps,
            start_token=start_token,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": {}}

    @property
    def token_width(self) -> int:
        """d, the width of a token embedding and of a context vector."""
        return self.tokens.shape[1]

    @property
    def longest(self) -> int:
        """The longest sequence that the encoder reads, [SOS] and [EOS] included."""
        return len(self.positions)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> token embeddings [..., d]."""
        return F.embedding(ids.to(self.tokens.device), self.tokens)

    def rows(self, context: Tensor, classes: ClassTokens, position: Position = "end") -> int:
        """L, the rows that one context, [M, d] or [C, M, d], takes with these classes."""
        return len(self._prepare(classes, context.shape[-2], position, context.dim() == 3).embeddings)

    def rows_within(self, memory: int) -> int:
        """How many rows of all prompts together keep no more than so many bytes for the backward pass."""
        return max(1, memory // (KEPT * len(self.layers) * self.token_width * self.projection.element_size()))

    def __call__(self, contexts: Tensor, classes: ClassTokens, position: Position = "end") -> Tensor:
        """Contexts [K, M, d] and the tokens of C classes -> text features [K, C, D] of unit length.

        contexts: or [K, C, M, d], one for each class. position: of the class name in the context. "middle", "front" and
        contexts of their own are slower: the classes share less of a prompt.
        Gradients flow to the contexts; the encoder's own weights are frozen. Raises CheckpointError if the sequence is
        longer than the encoder reads.
        """
        K, M, C = len(contexts), contexts.shape[-2], len(classes)
        if not K:
            return contexts.new_empty(0, C, len(self.projection))
        length = 1 + M + classes.ids.shape[1]
        if length > self.longest:
            raise CheckpointError(
                f"a context of {M} vectors and the longest class name need {length} positions,"
                f" the checkpoint has {self.longest}: shorten the context or the class names"
            )
        specific = contexts.dim() == 4
        prepared = self._prepare(classes, M, position, specific)
        rows, allowed = len(prepared.embeddings), self.rows_within(self.memory)
        if K * rows <= allowed:
            return self._encode(contexts.flatten(1, -2), prepared)
        again = torch.is_grad_enabled() and contexts.requires_grad
        features = []
        for some in contexts.split(max(1, allowed // rows)):
            parts = []
            for piece in _pieces(C, math.ceil(C * min(1.0, allowed / rows))):
                part = self._prepare(classes.select(piece), M, position, specific)
                vectors = (some[:, piece.start : piece.stop] if specific else some).flatten(1, -2)
                encoded = (
                    checkpoint(self._encode, vectors, part, use_reentrant=False, preserve_rng_state=False)
                    if again
                    else self._encode(vectors, part)
                )
                parts.append(encoded)
            features.append(torch.cat(parts, dim=1))
        return torch.cat(features)

    def each(self, contexts: Sequence[Tensor], classes: ClassTokens, position: Position = "end") -> list[Tensor]:
        """The features [C, D] of each of some contexts, [M, d] or [C, M, d]; those of one shape are read together."""
        found: dict[int, Tensor] = {}
        for shape in dict.fromkeys(context.shape for context in contexts):
            alike = [i for i, context in enumerate(contexts) if context.shape == shape]
            found |= zip(alike, self(torch.stack([contexts[i] for i in alike]), classes, position), strict=True)
        return [found[i] for i in range(len(contexts))]

    @torch.no_grad()
    def _prepare(self, classes: ClassTokens, context_length: int, position: Position, specific: bool) -> Prepared:
        tokens = (classes.ids.numpy().tobytes(), classes.end.numpy().tobytes(), classes.tail)
        key = (*tokens, context_length, position, specific)
        if key not in self._prepared:
            if len(self._prepared) >= 64:  # a task needs few; whoever meets many tasks in a process needs no more
                self._prepared.clear()
            packing = pack(classes, context_length, position, self.start_token, specific).to(self.tokens)
            embeddings = self.embed(packing.tokens) + self.positions[packing.places]
            embeddings[packing.context_rows] = 0
            first = self.layers[0]
            self._prepared[key] = Prepared(
                packing=packing,
                embeddings=embeddings,
                places=self.positions[packing.places[packing.context_rows]],
                rows=self._linear(self._normalise(embeddings, first.norm1), first.rows),
            )
        return self._prepared[key]

    def _encode(self, contexts: Tensor, prepared: Prepared) -> Tensor:
        """Context vectors, [K, M, d] or [K, C·M, d], -> [K, C, D]"""
        packing, d = prepared.packing, self.token_width
        vectors = contexts[:, packing.vectors] + prepared.places
        x = _put(vectors, packing.context_rows, prepared.embeddings)
        *inner, last = self.layers
        for number, layer in enumerate(inner):
            if number == 0:
                changing = self._linear(self._normalise(vectors, layer.norm1), layer.rows)
                rows = _put(changing, packing.context_rows, prepared.rows)
            else:
                rows = self._linear(self._normalise(x, layer.norm1), layer.rows)
            seen = attend(None, packing.in_blocks(rows), packing.prefix, packing.mask, self.heads)
            x = self._after_attention(x, seen.flatten(1, 2), layer)

        normal = self._normalise(x, last.norm1)
        of_query, of_rows = (
            Affine(*parts) for parts in zip(*(part.split([d, 2 * d]) for part in last.rows), strict=True)
        )
        queries = packing.in_blocks(self._linear(normal[:, packing.ends], of_query)[:, packing.asking])
        rows = packing.in_blocks(self._linear(normal, of_rows))
        seen = attend(queries, rows, packing.prefix, packing.end_mask, self.heads).flatten(1, 2)
        x = self._after_attention(x[:, packing.ends], seen[:, packing.asked], last)
        features = F.linear(self._normalise(x, self.final_norm).to(self.projection.dtype), self.projection)
        return F.normalize(features.to(contexts.dtype), dim=-1)

    def _after_attention(self, x: Tensor, seen: Tensor, layer: Layer) -> Tensor:
        x = x + self._linear(seen, layer.out)
        up = self._linear(self._normalise(x, layer.norm2), layer.up)
        return x + self._linear(self.activation(up), layer.down)

    def _linear(self, x: Tensor, affine: Affine) -> Tensor:
        return F.linear(x.to(affine.weight.dtype), affine.weight, affine.bias)

    def _normalise(self, x: Tensor, affine: Affine) -> Tensor:
        return F.layer_norm(x, affine.weight.shape, affine.weight, affine.bias, self.epsilon)


def _to(affine: Affine, dtype: torch.dtype) -> Affine:
    return Affine(affine.weight.to(dtype), affine.bias.to(dtype))


def _put(values: Tensor, rows: Tensor, into: Tensor) -> Tensor:
    """[K, L, w]: the same rows for all prompts [L, w], but for those that are given [K, V, w]."""
    return into.expand(len(values), -1, -1).index_copy(1, rows, values)


def _pieces(count: int, size: int) -> Iterator[range]:
    """0 … count−1 in ranges of about equal size, at most `size`."""
    pieces = math.ceil(count / size)
    return (range(i * count // pieces, (i + 1) * count // pieces) for i in range(pieces))
