"""Prompts x class names -> text features: CLIP's own numbers with less work.

CLIP's text encoder is causal and reads a class at its EOS token. So nothing behind EOS is computed, and with the class
name at the end the hidden states of `[SOS] p_1 … p_M` are the same for every class: they are computed once per prompt,
and each class attends to them with only its own few tokens.

Letters: K prompts, C classes, M context vectors, P = 1 + M, T class tokens, H heads, d token width, D feature width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone.tokens import ClassTokens
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TextEncoder:
    """The frozen text tower of a CLIP: plain tensors and a forward pass.

    weights: names as in transformers' `text_model.*`, without that prefix, and `text_projection.weight`.
    """

    weights: Mapping[str, Tensor]
    layers: int
    heads: int
    activation: str
    epsilon: float
    start_token: int

    @classmethod
    def of(cls, model: "CLIPModel", start_token: int) -> "TextEncoder":
        """The text tower of a transformers CLIPModel; raises CheckpointError for one that is not CLIP-shaped.

        start_token: the tokenizer's. The config's is not to be trusted: OpenAI's say 0, their tokenizer 49406.
        """
        config: Any = model.config.text_config
        if config.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"hidden_act of the checkpoint's text_config must be one of {', '.join(ACTIVATIONS)},"
                f" got {config.hidden_act!r}"
            )
        state = model.state_dict()
        weights = {k.removeprefix("text_model."): v for k, v in state.items() if k.startswith("text_model.")}
        weights["text_projection.weight"] = state["text_projection.weight"]
        return cls(
            weights={name: weight.detach() for name, weight in weights.items()},
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            activation=config.hidden_act,
            epsilon=config.layer_norm_eps,
            start_token=start_token,
        )

    @property
    def token_width(self) -> int:
        """d, the width of a token embedding and of a context vector."""
        return self.weights["embeddings.token_embedding.weight"].shape[1]

    @property
    def positions(self) -> int:
        """The longest sequence that the encoder reads, [SOS] and [EOS] included."""
        return self.weights["embeddings.position_embedding.weight"].shape[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> token embeddings [..., d]."""
        return F.embedding(ids, self.weights["embeddings.token_embedding.weight"])

    def __call__(self, contexts: Tensor, classes: ClassTokens) -> Tensor:
        """Contexts [K, M, d] and the tokens of C classes -> text features [K, C, D] of unit length.

        Gradients flow to the contexts; the encoder's own weights are frozen. Raises CheckpointError if the sequence is
        longer than the encoder reads.
        """
        length = 1 + contexts.shape[1] + classes.ids.shape[1]
        if length > self.positions:
            raise CheckpointError(
                f"a context of {contexts.shape[1]} vectors and the longest class name need {length} positions,"
                f" the checkpoint has {self.positions}: shorten the context or the class names"
            )
        K, C = len(contexts), len(classes)
        place = self.weights["embeddings.position_embedding.weight"]
        start = self.embed(torch.tensor([self.start_token], device=contexts.device)).expand(K, 1, -1)
        prefix = torch.cat([start, contexts], dim=1)  # [K, P, d]
        P = prefix.shape[1]
        prefix = prefix + place[:P]
        suffix = (self.embed(classes.ids) + place[P:length]).expand(K, -1, -1, -1)  # [K, C, T, d]
        for layer in range(self.layers):
            prefix, suffix = self._layer(layer, prefix, suffix)
        ends = suffix[:, torch.arange(C, device=contexts.device), classes.end]  # [K, C, d]
        features = self._normalise(ends, "final_layer_norm") @ self.weights["text_projection.weight"].T
        return F.normalize(features, dim=-1)

    def _layer(self, layer: int, prefix: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
        name = f"encoder.layers.{layer}."
        of_prefix, of_suffix = self._attend(
            name, self._normalise(prefix, name + "layer_norm1"), self._normalise(suffix, name + "layer_norm1")
        )
        prefix, suffix = prefix + of_prefix, suffix + of_suffix
        return (
            prefix + self._mlp(name, self._normalise(prefix, name + "layer_norm2")),
            suffix + self._mlp(name, self._normalise(suffix, name + "layer_norm2")),
        )

    def _attend(self, name: str, prefix: Tensor, suffix: Tensor) -> tuple[Tensor, Tensor]:
        """Causal self-attention in the prefix; each class's tokens see the prefix and, causally, themselves.

        Plain matrix products and softmax: at these short sequences PyTorch's fused CPU attention is slower backwards.
        """
        name += "self_attn."
        q_p, k_p, v_p = (self._heads(self._linear(prefix, f"{name}{part}_proj")) for part in "qkv")  # [K, H, P, d/H]
        q_s, k_s, v_s = (self._heads(self._linear(suffix, f"{name}{part}_proj")) for part in "qkv")  # [K, C, H, T, d/H]
        P, T, scale = prefix.shape[-2], suffix.shape[-2], 1 / math.sqrt(q_p.shape[-1])

        of_prefix = torch.softmax(q_p @ k_p.mT * scale + _causal(P, prefix), dim=-1) @ v_p
        seen = torch.cat([q_s @ k_p.mT.unsqueeze(1), q_s @ k_s.mT + _causal(T, suffix)], dim=-1) * scale
        weight_p, weight_s = torch.softmax(seen, dim=-1).split([P, T], dim=-1)
        of_suffix = weight_p @ v_p.unsqueeze(1) + weight_s @ v_s

        out = f"{name}out_proj"
        return self._linear(_join(of_prefix), out), self._linear(_join(of_suffix), out)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        return self._linear(ACTIVATIONS[self.activation](self._linear(x, name + "mlp.fc1")), name + "mlp.fc2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _normalise(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)


def _causal(length: int, like: Tensor) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def _join(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)
