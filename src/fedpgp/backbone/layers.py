"""Transformer layers of both towers of a CLIP as plain tensors, and the parts that a method adds to them.

Letters: d width, h width of an adapter, M vectors, J layers, R rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.errors import CheckpointError

# OpenAI's approximation of GELU, x·σ(1.702 x), is silu(1.702 x) / 1.702. The adjacent weights absorb the factors.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "quick_gelu": (F.silu, 1.702),
    "gelu": (F.gelu, 1.0),
}
KEPT = 12  # vectors of width d that a row keeps in each layer for the backward pass (counted: 11 to 12)


class Affine(NamedTuple):
    """Weight [out, in] and bias of a linear map, or gain and bias of a normalization."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, state: Mapping[str, Tensor], name: str) -> "Affine":
        """Return the part of a model's state with the given name."""
        return cls(state[f"{name}.weight"], state[f"{name}.bias"])

    def to(self, dtype: torch.dtype) -> "Affine":
        """Return a copy in the given precision."""
        return Affine(self.weight.to(dtype), self.bias.to(dtype))


class Layer(NamedTuple):
    """Transformer layer; `rows` computes queries (already scaled), keys and values in one product."""

    norm1: Affine
    rows: Affine
    out: Affine
    norm2: Affine
    up: Affine
    down: Affine


class Adapter(NamedTuple):
    """Small network parallel to a layer: scale · up(relu(middle(relu(down(x))))).

    Its input x is the input of the layer, normalized as for the layer's attention.

    Attributes
    ----------
    down
        Weight [h, d].
    middle
        Weight [h', h].
    up
        Weight [d, h'].
    scale
        Factor of the result.
    """

    down: Affine
    middle: Affine
    up: Affine
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(F.linear(x, *self.down).relu(), *self.middle).relu(), *self.up)


@dataclass(frozen=True)
class Prompt:
    """Everything that a tower reads in addition to its frozen parts.

    Attributes
    ----------
    vectors
        [M, d], input of the first layer: the context in the text tower, vectors after the patches in the image tower.
    deeper
        [J − 1, M', d] with M' ≤ M; they replace the first M' vectors at the layers 1 … J − 1.
    adapters
        Adapters by the number of their layer.
    """

    vectors: Tensor
    deeper: Tensor | None = None
    adapters: Mapping[int, Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.deeper is not None and self.deeper.shape[-2] > self.vectors.shape[-2]:
            raise ValueError(
                f"a prompt of {self.vectors.shape[-2]} vectors cannot have {self.deeper.shape[-2]} vectors in a deeper"
                " layer, because the deeper vectors replace the first ones"
            )

    @classmethod
    def of(cls, context: "Tensor | Prompt") -> "Prompt":
        """Return a prompt with this context; a prompt is returned unchanged."""
        return context if isinstance(context, Prompt) else cls(context)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the prompt, in a fixed order."""
        of_adapters = [
            tensor for number in sorted(self.adapters) for part in self.adapters[number][:3] for tensor in part
        ]
        return [self.vectors, *([] if self.deeper is None else [self.deeper]), *of_adapters]

    @property
    def layers(self) -> int:
        """Number of layers that a tower needs for this prompt."""
        depth = 1 if self.deeper is None else 1 + len(self.deeper)
        return max([depth, *(number + 1 for number in self.adapters)])


@dataclass(frozen=True, eq=False)
class Layers:
    """Frozen layers of one tower.

    Matrix products use the precision of their weights. Normalizations and the sums between layers use the precision of
    the input.

    Attributes
    ----------
    weights
        The layers.
    activation
        The activation between the two linear maps of a layer.
    heads
        Number of attention heads.
    epsilon
        The constant in the denominator of the normalizations.
    """

    weights: Sequence[Layer]
    activation: Callable[[Tensor], Tensor]
    heads: int
    epsilon: float

    @classmethod
    def of(cls, state: Mapping[str, Tensor], tower: str, config: Any, products: torch.dtype) -> "Layers":
        """Create the layers from the state of a CLIPModel of transformers.

        Parameters
        ----------
        state
            Weights by name.
        tower
            "text_model" or "vision_model".
        config
            The config of this tower.
        products
            Precision of the matrix products.

        Raises
        ------
        CheckpointError
            If the activation is unknown.
        """
        if config.hidden_act not in ACTIVATIONS:
            kind = tower.removesuffix("_model")
            raise CheckpointError(
                where=f"hidden_act in the checkpoint's {kind}_config",
                allowed=f"one of {', '.join(ACTIVATIONS)}",
                got=config.hidden_act,
                remedy="Choose another checkpoint",
            )
        activation, factor = ACTIVATIONS[config.hidden_act]
        scale = 1 / math.sqrt(config.hidden_size // config.num_attention_heads)

        def affine(name: str, factor: float = 1.0, of_bias: float | None = None) -> Affine:
            weight, bias = Affine.of(state, f"{tower}.encoder.layers.{name}")
            return Affine(weight * factor, bias * (factor if of_bias is None else of_bias))

        def layer(n: int) -> Layer:
            parts = [affine(f"{n}.self_attn.{part}_proj", scale if part == "q" else 1.0) for part in "qkv"]
            rows = Affine(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
            return Layer(
                norm1=affine(f"{n}.layer_norm1"),
                rows=rows.to(products),
                out=affine(f"{n}.self_attn.out_proj").to(products),
                norm2=affine(f"{n}.layer_norm2"),
                up=affine(f"{n}.mlp.fc1", factor).to(products),
                down=affine(f"{n}.mlp.fc2", 1 / factor, of_bias=1.0).to(products),
            )

        return cls(
            tuple(layer(n) for n in range(config.num_hidden_layers)),
            activation,
            config.num_attention_heads,
            config.layer_norm_eps,
        )

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def width(self) -> int:
        """Width d of the layers."""
        return len(self.weights[0].norm1.weight)

    def check_depth(self, prompt: Prompt, tower: str) -> None:
        """Raise CheckpointError if a prompt is deeper than this tower, which messages call "text" or "image"."""
        if prompt.layers > len(self):
            raise CheckpointError(
                f"the prompt needs {prompt.layers} layers, but the {tower} tower of the checkpoint has {len(self)}",
                remedy="Use a prompt for fewer layers, or a deeper checkpoint",
            )

    def normalise(self, x: Tensor, affine: Affine) -> Tensor:
        """Return the normalized rows."""
        return F.layer_norm(x, affine.weight.shape, affine.weight, affine.bias, self.epsilon)

    def rows(self, x: Tensor, number: int) -> Tensor:
        """Return queries, keys and values [..., 3d] for the input [..., d] of a layer."""
        layer = self.weights[number]
        return linear(self.normalise(x, layer.norm1), layer.rows)

    def asked(self, x: Tensor, number: int, asking: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the queries of the rows that `asking` selects, and keys and values [..., 2d] of all rows."""
        layer, d = self.weights[number], self.width
        normal = self.normalise(x, layer.norm1)
        of_query = Affine(layer.rows.weight[:d], layer.rows.bias[:d])
        of_rows = Affine(layer.rows.weight[d:], layer.rows.bias[d:])
        return linear(asking(normal), of_query), linear(normal, of_rows)

    def after_attention(self, x: Tensor, seen: Tensor, number: int, adapter: Adapter | None = None) -> Tensor:
        """Return the output of a layer.

        Parameters
        ----------
        x
            Input of the layer.
        seen
            Output of its attention for the same rows.
        number
            Number of the layer.
        adapter
            Adapter of the layer, if any.
        """
        layer = self.weights[number]
        middle = x + linear(seen, layer.out)
        up = linear(self.normalise(middle, layer.norm2), layer.up)
        after = middle + linear(self.activation(up), layer.down)
        return after if adapter is None else after + adapter(self.normalise(x, layer.norm1))


def recomputed(encode: Callable[..., Tensor], prompt: Prompt, *arguments: Any) -> Tensor:
    """Return the result of `encode`; with gradients, compute it again in the backward pass instead of keeping it."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in prompt.tensors)):
        return encode(*arguments)
    encoded = checkpoint(encode, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(encoded, Tensor)
    return encoded


def kept_for_backward(forward: Callable[[], Tensor]) -> tuple[Tensor, dict[int, int]]:
    """Return the result of `forward`, and the bytes that it keeps for its backward pass, by storage address."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = forward()
    return features, kept


def linear(x: Tensor, affine: Affine) -> Tensor:
    """Apply a linear map in the precision of its weight."""
    return F.linear(x.to(affine.weight.dtype), affine.weight, affine.bias)
