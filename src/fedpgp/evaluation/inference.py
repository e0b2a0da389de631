"""Image and text features for a model, as its method declares them, and the model's logits.

Letters in shapes: K contexts, C classes, D feature width, B images, P patches, V visual prompts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedpgp.backbone import Towers
from fedpgp.backbone.image import PATCHES, state_below
from fedpgp.backbone.layers import Prompt
from fedpgp.backbone.tokens import ClassTokens, Position
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import ConfigError
from fedpgp.methods import Frozen, Method, Params
from fedpgp.runtime.workers import Workers

_Key = tuple[bytes, tuple[int, ...]]

PIECE = 64  # images of a test set processed at a time if a method reads more than one feature of each


def kind_of(method: Method) -> str | None:
    """Return the kind of tokens that a method needs in addition to image features, as in `ImageEncoder.encode`."""
    if "patches" in method.reads:
        return PATCHES
    return state_below(method.first_layer) if "image tower" in method.reads else None


def image_features(towers: Towers, method: Method, images: ImageFeatures, params: Params) -> Tensor:
    """Return the image features that a method reads: [B, D], [B, 1 + P, D] or [B, 1 + V, D]. Images have no views."""
    if "patches" in method.reads:
        return torch.cat([images.pooled[:, None], images.tokens], dim=1)
    if "image tower" in method.reads:
        assert towers.image is not None, "these towers have no image tower"
        seen = towers.image.each(images.tokens, method.visual_prompts(params), method.first_layer)
        return torch.stack([images.pooled, *seen], dim=1)
    return images.pooled


class Question(NamedTuple):
    """Images for a model to classify.

    Attributes
    ----------
    method, params
        The model.
    text
        Text features [K, C, D] of all contexts that do not depend on the image.
    images
        The images.
    classes
        Tokens of the C classes.
    frozen
        Constants of the C classes.
    seen
        The result of `image_features` for the images, if it is already known.
    """

    method: Method
    params: Params
    text: Tensor
    images: ImageFeatures
    classes: ClassTokens
    frozen: Frozen
    seen: Tensor | None = None

    def pieces(self) -> Iterator["Question"]:
        """Yield the question for PIECE images at a time."""
        for at in range(0, len(self.images), PIECE):
            piece = slice(at, at + PIECE)
            yield self._replace(images=self.images[piece], seen=None if self.seen is None else self.seen[piece])

    def whole_text(self, towers: Towers) -> Tensor:
        """Return all text features: [K, C, D], or [K + B, C, D] with one conditional prompt for each image."""
        own = self.method.conditional_prompts(self.params, self.images.pooled, self.frozen)
        if not own:
            return self.text
        return torch.stack([*self.text, *towers.text.each(own, self.classes, self.method.position)])


@torch.no_grad()
def answer(towers: Towers, question: Question) -> Tensor:
    """Return the logits [B, C] of a model. Raise ConfigError if the method's `predict` returns anything else."""
    method, params, seen = question.method, question.params, question.seen
    seen = image_features(towers, method, question.images, params) if seen is None else seen
    logits = method.predict(params, question.whole_text(towers), seen, question.frozen)
    expected = (len(question.images), len(question.classes))
    if not isinstance(logits, Tensor) or logits.shape != expected:
        raise ConfigError(
            where=f"predict of method {method.name!r}",
            allowed=f"a tensor of logits [images, classes] with the shape {list(expected)}",
            got=list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__,
            remedy="Fix the return value of the method's predict",
        )
    return logits


class VisualFeatures:
    """Features of the same images from the image tower, for one model after the other.

    It keeps the features for the visual prompts of the previous model. A visual prompt that consecutive clients have
    from the server is therefore only read once.

    Parameters
    ----------
    method
        The method.
    images
        Sets of images, by name.
    workers
        Worker processes with the towers.
    """

    def __init__(self, method: Method, images: Mapping[str, ImageFeatures], workers: Workers[Towers]):
        self._method, self._images, self._workers = method, images, workers
        self._known: dict[_Key, Mapping[str, Tensor]] = {}

    def __call__(self, params: Params) -> Mapping[str, Tensor]:
        """Return the image features of a model, [n, 1 + V, D], by set of images."""
        prompts = self._method.visual_prompts(params)
        keys = [_key(prompt, ()) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        self._known = {key: self._known[key] for key in keys if key in self._known} | self._encode_images(new)
        return {
            name: torch.stack([images.pooled, *(self._known[key][name] for key in keys)], dim=1)
            for name, images in self._images.items()
        }

    def _encode_images(self, prompts: Mapping[_Key, Prompt]) -> dict[_Key, Mapping[str, Tensor]]:
        if not prompts:
            return {}
        pieces = [(name, at) for name, images in self._images.items() for at in range(0, len(images), PIECE)]
        jobs = (
            (self._images[name][at : at + PIECE], list(prompts.values()), self._method.first_layer)
            for name, at in pieces
        )
        seen: dict[str, list[Tensor]] = defaultdict(list)
        for (name, _), features in zip(pieces, self._workers.map(_see_with, jobs), strict=True):
            seen[name].append(features)
        read = {name: torch.cat(parts, dim=1) for name, parts in seen.items()}  # [prompts, n, D]
        return {key: {name: features[i] for name, features in read.items()} for i, key in enumerate(prompts)}


@torch.no_grad()
def _see_with(towers: Towers, job: tuple[ImageFeatures, Sequence[Prompt], int]) -> Tensor:
    """Return the features [V, B, D] of some images with each visual prompt."""
    images, prompts, first = job
    assert towers.image is not None, "these towers have no image tower"
    return torch.stack(towers.image.each(images.tokens, prompts, first))


class Reading(NamedTuple):
    """Contexts to read with some classes."""

    contexts: Sequence[Tensor | Prompt]
    classes: tuple[int, ...]


class Texts:
    """Text features of many models, one chunk of models at a time.

    A context that occurs several times in a chunk, or in the previous chunk, is encoded once. Therefore the global
    context of all models is encoded once in an evaluation. A context for the classes of several softmaxes is read once
    with all class names.

    Parameters
    ----------
    tokens
        Tokens of all class names.
    position
        Position of the class name in the context.
    workers
        Worker processes with the towers.
    """

    def __init__(self, tokens: ClassTokens, position: Position, workers: Workers[Towers]):
        self._tokens, self._position, self._workers = tokens, position, workers
        self._known: dict[_Key, Tensor] = {}

    def __call__(self, readings: Sequence[Reading]) -> list[Tensor]:
        """Return the text features [K, C, D] of each reading."""
        everything = tuple(range(len(self._tokens)))
        keys = [[_key(context, reading.classes) for context in reading.contexts] for reading in readings]
        wanted: dict[_Key, Tensor | Prompt] = {}
        for of_reading, reading in zip(keys, readings, strict=True):
            wanted |= zip(of_reading, reading.contexts, strict=True)
        known = {key: self._known[key] for key in wanted if key in self._known}
        new = [key for key in wanted if key not in known]
        jobs = [(wanted[key], self._tokens.select(key[1] or everything), self._position) for key in new]
        known |= zip(new, self._workers.map(_encode, jobs), strict=True)
        self._known = known
        return list(map(self._text, keys, readings))

    def _text(self, keys: Sequence[_Key], reading: Reading) -> Tensor:
        if not keys:
            return torch.empty(0, len(reading.classes), 0)
        return torch.stack([self._known[k] if k[1] else self._known[k][list(reading.classes)] for k in keys])


def _key(context: Tensor | Prompt, classes: tuple[int, ...]) -> _Key:
    """Return a key of a context: its bytes, and the classes if it has separate vectors for each class."""
    prompt = Prompt.of(context)
    scales = [(number, prompt.adapters[number].scale) for number in sorted(prompt.adapters)]
    form = [list(tensor.shape) for tensor in prompt.tensors], scales
    numbers = [tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes() for tensor in prompt.tensors]
    return b"".join([*numbers, repr(form).encode()]), classes if prompt.vectors.dim() == 3 else ()


@torch.no_grad()
def _encode(towers: Towers, job: tuple[Tensor | Prompt, ClassTokens, Position]) -> Tensor:
    """Return the text features [C, D] of a context."""
    context, tokens, position = job
    (features,) = towers.text.each([context], tokens, position)
    return features
