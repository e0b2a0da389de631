"""What a model is given of images and of class names, as its method declares it.

Letters: K contexts, C classes, D feature width, B images, P patches, V visual prompts.
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

PIECE = 64  # images of a test set read at a time where a method reads more of them than one feature


def kind_of(method: Method) -> str | None:
    """What must be kept of an image beside its feature: a kind of `ImageEncoder.encode`."""
    if "patches" in method.reads:
        return PATCHES
    return state_below(method.first_layer) if "image tower" in method.reads else None


def image_features(towers: Towers, method: Method, images: ImageFeatures, params: Params) -> Tensor:
    """What a method is given of images without views: [B, D], [B, 1 + P, D] or [B, 1 + V, D], as it reads."""
    if "patches" in method.reads:
        return torch.cat([images.pooled[:, None], images.tokens], dim=1)
    if "image tower" in method.reads:
        assert towers.image is not None, "the image tower was not made for these methods"
        seen = towers.image.each(images.tokens, method.visual_prompts(params), method.first_layer)
        return torch.stack([images.pooled, *seen], dim=1)
    return images.pooled


class Question(NamedTuple):
    """Images for a model to classify.

    text: [K, C, D] of all contexts that are the same for every image; seen: what `image_features` gives of the images,
    where that is known already.
    """

    method: Method
    params: Params
    text: Tensor
    images: ImageFeatures
    classes: ClassTokens
    frozen: Frozen
    seen: Tensor | None = None

    def pieces(self) -> Iterator["Question"]:
        """The same of PIECE images at a time."""
        for at in range(0, len(self.images), PIECE):
            piece = slice(at, at + PIECE)
            yield self._replace(images=self.images[piece], seen=None if self.seen is None else self.seen[piece])

    def whole_text(self, towers: Towers) -> Tensor:
        """[K, C, D], or [K + B, C, D] with what each image has of its own."""
        own = self.method.conditional_prompts(self.params, self.images.pooled, self.frozen)
        if not own:
            return self.text
        return torch.stack([*self.text, *towers.text.each(own, self.classes, self.method.position)])


@torch.no_grad()
def answer(towers: Towers, question: Question) -> Tensor:
    """The logits [B, C]."""
    method, params, seen = question.method, question.params, question.seen
    seen = image_features(towers, method, question.images, params) if seen is None else seen
    logits = method.predict(params, question.whole_text(towers), seen, question.frozen)
    expected = (len(question.images), len(question.classes))
    if not isinstance(logits, Tensor) or logits.shape != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"method {method.name!r} fails: predict must return logits [images, classes], {list(expected)}, got {got};"
            " mend it"
        )
    return logits


class VisualFeatures:
    """What models see of the same images through the image tower; a visual prompt of the model before is known already.

    So what many clients have from the server is read once for all that come one after the other. images: by name.
    """

    def __init__(self, method: Method, images: Mapping[str, ImageFeatures], workers: Workers[Towers]):
        self._method, self._images, self._workers = method, images, workers
        self._known: dict[_Key, Mapping[str, Tensor]] = {}

    def __call__(self, params: Params) -> Mapping[str, Tensor]:
        """[n, 1 + V, D] of every set of images."""
        prompts = self._method.visual_prompts(params)
        keys = [_key(prompt, ()) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        self._known = {key: self._known[key] for key in keys if key in self._known} | self._look(new)
        return {
            name: torch.stack([images.pooled, *(self._known[key][name] for key in keys)], dim=1)
            for name, images in self._images.items()
        }

    def _look(self, prompts: Mapping[_Key, Prompt]) -> dict[_Key, Mapping[str, Tensor]]:
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
    """[V, B, D]"""
    images, prompts, first = job
    assert towers.image is not None, "the image tower was not made for these methods"
    return torch.stack(towers.image.each(images.tokens, prompts, first))


class Reading(NamedTuple):
    """Contexts to be read with some classes."""

    contexts: Sequence[Tensor | Prompt]
    classes: tuple[int, ...]


class Texts:
    """Text features of many models, a chunk at a time; contexts of the chunk or the one before are encoded once.

    So the global context, which every model reads, is encoded once in an evaluation, and one that stands before the
    classes of several softmaxes is read once with all class names.
    """

    def __init__(self, tokens: ClassTokens, position: Position, workers: Workers[Towers]):
        self._tokens, self._position, self._workers = tokens, position, workers
        self._known: dict[_Key, Tensor] = {}

    def __call__(self, readings: Sequence[Reading]) -> list[Tensor]:
        """Text features [K, C, D] of every reading."""
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
    """A context's numbers, and the classes where it has one for each of them."""
    prompt = Prompt.of(context)
    scales = [(number, prompt.adapters[number].scale) for number in sorted(prompt.adapters)]
    form = [list(tensor.shape) for tensor in prompt.tensors], scales
    numbers = [tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes() for tensor in prompt.tensors]
    return b"".join([*numbers, repr(form).encode()]), classes if prompt.vectors.dim() == 3 else ()


@torch.no_grad()
def _encode(towers: Towers, job: tuple[Tensor | Prompt, ClassTokens, Position]) -> Tensor:
    """[C, D]"""
    context, tokens, position = job
    (features,) = towers.text.each([context], tokens, position)
    return features
