"""What both towers of a CLIP are made of: transformer layers as plain tensors, and what a method adds to them.

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

    @classmethod
    def of(cls, state: Mapping[str, Tensor], name: str) -> "Affine":
        """The part of a model's state with that name."""
        return cls(state[f"{name}.weight"], state[f"{name}.bias"])

    def to(self, dtype: torch.dtype) -> "Affine":
        return Affine(self.weight.to(dtype), self.bias.to(dtype))


class Layer(NamedTuple):
    """A transformer layer. rows: queries, which hold the attention's scale, keys and values in one product."""

    norm1: Affine
    rows: Affine
    out: Affine
    norm2: Affine
    up: Affine
    down: Affine


class Adapter(NamedTuple):
    """A small network beside a whole layer: scale · up(relu(middle(relu(down(x))))).

    x: what goes into the layer, normalised as for its attention. down: [h, d]; middle: [h', h]; up: [d, h'].
    """

    down: Affine
    middle: Affine
    up: Affine
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(F.linear(x, *self.down).relu(), *self.middle).relu(), *self.up)


@dataclass(frozen=True)
class Prompt:
    """What a tower reads beside what is frozen.

    vectors: [M, d] at the first layer: in the text tower the context, in the image tower behind the patches.
    deeper: [J − 1, M', d], M' ≤ M, which take the place of the first M' of them at the layers 1 … J − 1.
    adapters: by the number of their layer.
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
        """A context that is read as it is, or a prompt itself."""
        return context if isinstance(context, Prompt) else cls(context)

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, in a fixed order."""
        of_adapters = [
            tensor for number in sorted(self.adapters) for part in self.adapters[number][:3] for tensor in part
        ]
        return [self.vectors, *([] if self.deeper is None else [self.deeper]), *of_adapters]

    @property
    def layers(self) -> int:
        """How many layers a tower must have at least."""
        depth = 1 if self.deeper is None else 1 + len(self.deeper)
        return max([depth, *(number + 1 for number in self.adapters)])


@dataclass(frozen=True, eq=False)
class Layers:
    """The frozen layers of one tower.

    Products work in the precision of their weights; normalisations and the sums between layers in that of what goes in.
    """

    weights: Sequence[Layer]
    activation: Callable[[Tensor], Tensor]
    heads: int
    epsilon: float

    @classmethod
    def of(cls, state: Mapping[str, Tensor], tower: str, config: Any, products: torch.dtype) -> "Layers":
        """From the state of a transformers CLIPModel; tower: "text_model" or "vision_model"; config: the tower's.

        products: precision of the matrix products. Raises CheckpointError for an unknown activation.
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
        """d"""
        return len(self.weights[0].norm1.weight)

    def check_depth(self, prompt: Prompt, tower: str) -> None:
        """Raises CheckpointError for a prompt that is deeper than this tower, called "text" or "image"."""
        if prompt.layers > len(self):
            raise CheckpointError(
                f"the prompt needs {prompt.layers} layers, but the {tower} tower of the checkpoint has {len(self)}",
                remedy="Use a prompt for fewer layers, or a deeper checkpoint",
            )

    def normalise(self, x: Tensor, affine: Affine) -> Tensor:
        return F.layer_norm(x, affine.weight.shape, affine.weight, affine.bias, self.epsilon)

    def rows(self, x: Tensor, number: int) -> Tensor:
        """Queries, keys and values [..., 3d] of the numbers [..., d] that go into a layer."""
        layer = self.weights[number]
        return linear(self.normalise(x, layer.norm1), layer.rows)

    def asked(self, x: Tensor, number: int, asking: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Queries of the rows that `asking` picks, and keys and values [..., 2d] of all."""
        layer, d = self.weights[number], self.width
        normal = self.normalise(x, layer.norm1)
        of_query = Affine(layer.rows.weight[:d], layer.rows.bias[:d])
        of_rows = Affine(layer.rows.weight[d:], layer.rows.bias[d:])
        return linear(asking(normal), of_query), linear(normal, of_rows)

    def after_attention(self, x: Tensor, seen: Tensor, number: int, adapter: Adapter | None = None) -> Tensor:
        """What leaves a layer. x: rows that go into it; seen: what its attention has found for them."""
        layer = self.weights[number]
        middle = x + linear(seen, layer.out)
        up = linear(self.normalise(middle, layer.norm2), layer.up)
        after = middle + linear(self.activation(up), layer.down)
        return after if adapter is None else after + adapter(self.normalise(x, layer.norm1))


def recomputed(encode: Callable[..., Tensor], prompt: Prompt, *arguments: Any) -> Tensor:
    """What `encode` returns; it keeps nothing for the backward pass of a prompt, and is called once more there."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in prompt.tensors)):
        return encode(*arguments)
    encoded = checkpoint(encode, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(encoded, Tensor)
    return encoded


def kept_for_backward(forward: Callable[[], Tensor]) -> tuple[Tensor, dict[int, int]]:
    """What `forward` returns, and what it keeps for its backward pass: bytes by the address of the storage."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = forward()
    return features, kept


def linear(x: Tensor, affine: Affine) -> Tensor:
    """A product in the precision of its weight."""
    return F.linear(x.to(affine.weight.dtype), affine.weight, affine.bias)
