"""The image tower from a state that is still constant: frozen weights, with a method's prompts and adapters in it.

What does not depend on what is trained is computed once and kept (`ImageEncoder.encode`): the work begins at the lowest
layer that a method changes. In the first of its layers the patches' queries, keys and values need no gradient, and in
the last one everything but keys and values is computed for the class token alone.

Letters: B images, T tokens, m vectors of a visual prompt, w width of the tower, D feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.backbone.attention import attend
from fedpgp.backbone.layers import KEPT, Affine, Layers, Prompt
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True, eq=False)
class ImageTower:
    """The frozen image tower of a CLIP: plain tensors and a forward pass.

    memory: bytes that a call keeps for its backward pass; what needs more is read piece by piece, and each piece once
    more when gradients are asked for.
    """

    layers: Layers
    first_norm: Affine
    final_norm: Affine
    projection: Tensor  # [D, w]
    memory: int = 2 * 2**30

    @classmethod
    def of(cls, model: "CLIPModel") -> "ImageTower":
        """The image tower of a transformers CLIPModel; raises CheckpointError for one that is not CLIP-shaped."""
        state = {name: weight.detach() for name, weight in model.state_dict().items()}

        def norm(name: str) -> Affine:
            return Affine(state[f"vision_model.{name}.weight"], state[f"vision_model.{name}.bias"])

        return cls(
            layers=Layers.of(state, "vision_model", model.config.vision_config, model.dtype),
            first_norm=norm("pre_layrnorm"),
            final_norm=norm("post_layernorm"),
            projection=state["visual_projection.weight"],
        )

    def each(self, states: Tensor, prompts: Sequence[Prompt], first: int) -> list[Tensor]:
        """The features [B, D], of unit length, of the same images as the tower sees them with each of some prompts.

        states: [B, T, w], what goes into layer `first`. A prompt's vectors stand behind the patches, without places and
        through the normalisation before the first layer (MaPLe's code); where `first` is not 0 it has none.
        Gradients flow to the prompts. Raises CheckpointError for a prompt or a layer that is deeper than the tower.
        """
        for prompt in prompts:
            lowest = 0 if len(prompt.vectors) or prompt.deeper is not None else min(prompt.adapters, default=first)
            if lowest < first:
                raise CheckpointError(
                    f"a prompt that changes what is below layer {first} of the image tower, from 0, needs first_layer"
                    " to be lower: vectors stand at layer 0"
                )
            if prompt.layers > len(self.layers):
                raise CheckpointError(
                    f"a prompt for {prompt.layers} layers is too deep: the checkpoint's image tower has"
                    f" {len(self.layers)}"
                )
        if not 0 <= first < len(self.layers):
            raise CheckpointError(
                f"the image tower has {len(self.layers)} layers, from 0, there is none with number {first}"
            )
        rows = states.shape[1] + max((len(prompt.vectors) for prompt in prompts), default=0)
        # Beside its numbers of width w, each row keeps what it sees of all others, by heads: long sequences tell.
        numbers = (KEPT * self.layers.width + self.layers.heads * rows) * (len(self.layers) - first)
        allowed = max(1, self.memory // (numbers * rows * states.element_size()))  # images at once
        if len(prompts) * len(states) <= allowed:
            return [self._see(states, prompt, first) for prompt in prompts]
        return [
            torch.cat([self._again(piece, prompt, first) for piece in states.split(min(allowed, len(states)))])
            for prompt in prompts
        ]

    def _again(self, states: Tensor, prompt: Prompt, first: int) -> Tensor:
        """Keeps nothing for the backward pass, which reads the images once more."""
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in prompt.tensors)):
            return self._see(states, prompt, first)
        seen = checkpoint(self._see, states, prompt, first, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(seen, Tensor)
        return seen

    def _see(self, states: Tensor, prompt: Prompt, first: int) -> Tensor:
        """[B, T, w] -> [B, D]"""
        layers, last = self.layers, len(self.layers) - 1
        vectors = layers.normalise(prompt.vectors, self.first_norm).expand(len(states), -1, -1)
        x = torch.cat([states, vectors], dim=1)
        for number in range(first, last):
            if number == first:
                rows = torch.cat([layers.rows(states, first), layers.rows(vectors, first)], dim=1)
            else:
                x = _replaced(x, states.shape[1], prompt, number)
                rows = layers.rows(x, number)
            seen = attend(None, rows[:, None], 0, None, layers.heads)[:, 0]
            x = layers.after_attention(x, seen, number, prompt.adapters.get(number))
        x = _replaced(x, states.shape[1], prompt, last)
        queries, rows = layers.asked(x, last, lambda normal: normal[:, :1])
        seen = attend(queries[:, None], rows[:, None], 0, None, layers.heads)[:, 0]
        x = layers.after_attention(x[:, :1], seen, last, prompt.adapters.get(last))[:, 0]
        return F.normalize(F.linear(layers.normalise(x, self.final_norm), self.projection), dim=-1)


def _replaced(x: Tensor, tokens: int, prompt: Prompt, number: int) -> Tensor:
    """What goes into a layer: with the prompt's vectors of that layer behind the image's tokens."""
    if prompt.deeper is None or not 0 < number <= len(prompt.deeper):
        return x
    own = prompt.deeper[number - 1].expand(len(x), -1, -1)
    return torch.cat([x[:, :tokens], own, x[:, tokens + own.shape[1] :]], dim=1)
