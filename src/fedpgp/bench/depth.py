"""What it saves to begin at a kept state of the image tower, and what text for every image costs.

Both sides of each comparison do the same work, and their times are taken in turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.image import state_below
from fedpgp.backbone.layers import Adapter, Affine, Prompt
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.bench.flops import image, image_below, packed, tower
from fedpgp.bench.machine import first_call, seconds
from fedpgp.bench.shapes import BATCH, Scene, random_features
from fedpgp.methods import Batch, Frozen, Params, normal
from fedpgp.methods.fedcocoop import FedCoCoOp
from fedpgp.runtime.randomness import generator

VECTORS, WIDTH = 4, 32  # of a visual prompt; of an adapter
CLASSES, BATCHES = (10, 25, 50), (1, 4, 8)


@dataclass(frozen=True)
class Depth:
    """A batch forward and backward through the image tower with something trained from a layer on.

    pixels, state: seconds from the pictures and from what is kept below the layer, by repetition; frozen: of the frozen
    tower's whole forward pass; below: the part of that pass's counted operations that is below the layer; flops: of the
    work from the state.
    """

    layer: int
    pixels: Sequence[float]
    state: Sequence[float]
    frozen: Sequence[float]
    below: float
    flops: int

    @property
    def saved(self) -> float:
        """Of the frozen pass's seconds, the part that is saved: to be held against `below`."""
        times = zip(self.pixels, self.state, self.frozen, strict=True)
        return median((pixels - state) / frozen for pixels, state, frozen in times)


@dataclass(frozen=True)
class Conditional:
    """A local step of FedCoCoOp. seconds: by repetition; memory: bytes that the process grew by at most."""

    classes: int
    batch: int
    seconds: Sequence[float]
    memory: int | None
    flops: int


def measure_depths(scene: Scene, repeat: int) -> list[Depth]:
    """From the first layer on with a visual prompt in every layer, from others with adapters."""
    encoder, vision, projection = scene.backbone.image, scene.config.vision_config, scene.config.projection_dim
    pixels, rng = scene.pixels["train"][:BATCH], generator(0, "depth")
    found = []
    for layer in sorted({encoder.layers * quarter // 4 for quarter in range(4)}):
        prompt = _prompt(scene, layer, rng)
        state = encoder.encode(pixels, state_below(layer)).clone()
        from_pixels, from_state, frozen = [], [], []
        for _ in range(repeat):
            from_pixels.append(seconds(partial(_from_pixels, scene, pixels, prompt, layer)))
            from_state.append(seconds(partial(_from_state, scene, state, prompt, layer)))
            frozen.append(seconds(partial(encoder.encode, pixels)))
        below = image_below(vision, layer) / image(vision, projection)
        above = tower(vision, projection, len(pixels), len(prompt.vectors), layer).total
        found.append(Depth(layer, from_pixels, from_state, frozen, below, above))
    return found


def _from_pixels(scene: Scene, pixels: Tensor, prompt: Prompt, layer: int) -> None:
    _from_state(scene, scene.backbone.image.encode(pixels, state_below(layer)).clone(), prompt, layer)


def _from_state(scene: Scene, state: Tensor, prompt: Prompt, layer: int) -> None:
    (seen,) = scene.backbone.image.tower.each(state, [prompt], layer)
    seen.sum().backward()


def _prompt(scene: Scene, layer: int, rng: torch.Generator) -> Prompt:
    encoder = scene.backbone.image
    w = encoder.token_width

    def drawn(*shape: int) -> Tensor:
        return normal(rng, *shape).to(scene.backbone.logit_scale).requires_grad_()

    def affine(outputs: int, inputs: int) -> Affine:
        return Affine(drawn(outputs, inputs), drawn(outputs))

    if layer == 0:
        return Prompt(drawn(VECTORS, w), drawn(encoder.layers - 1, VECTORS, w))
    adapters = {
        number: Adapter(affine(WIDTH, w), affine(WIDTH, WIDTH), affine(w, WIDTH), 0.1)
        for number in range(layer, encoder.layers)
    }
    return Prompt(drawn(0, w), None, adapters)


def measure_conditional(scene: Scene, repeat: int) -> list[Conditional]:
    """A local step by the classes of the softmax and the images of a batch; each image has a context of its own."""
    backbone, config = scene.backbone, scene.config
    method = FedCoCoOp()
    first = method.init_shared(scene.task, backbone, generator(0, "shared"))
    found = []
    for count in CLASSES:
        names = [scene.task.class_names[label] for label in scene.task.base[:count]]
        tokens = backbone.class_tokens(names, method.tail)
        guidance = random_features(count, backbone.logit_scale, config.projection_dim, 0)
        frozen = Frozen(guidance, backbone.logit_scale, torch.arange(count))
        for size in BATCHES:
            images = random_features(size, backbone.logit_scale, config.projection_dim, 1)
            batch = Batch(images, torch.arange(size) % count)
            step = partial(_conditional_step, backbone, method, first, tokens, batch, frozen)
            _, memory, once = first_call(step)
            one = packed(config.text_config, size, method.context_length, (tokens.end + 1).tolist())
            times = [once, *(seconds(step) for _ in range(repeat - 1))]
            found.append(Conditional(count, size, times, memory, one.total))
    return found


def _conditional_step(
    backbone: Backbone,
    method: FedCoCoOp,
    first: Mapping[str, Tensor],
    tokens: ClassTokens,
    batch: Batch,
    frozen: Frozen,
) -> None:
    params = Params({name: tensor.clone().requires_grad_() for name, tensor in first.items()}, {})
    contexts = method.conditional_prompts(params, batch.features, frozen)
    text = torch.stack(backbone.text.each(contexts, tokens, method.position))
    torch.stack(list(method.loss(params, text, batch, frozen).values())).sum().backward()
