"""Reduce a model to a linear head or a single prompt if its method allows it.

Whether this is possible is tested on random inputs, so no method is named here.

Letters: B images, C classes, D feature width, M context vectors, d token width.
"""

import torch
from torch import Tensor

from fedpgp.backbone.layers import Prompt
from fedpgp.errors import ConfigError
from fedpgp.serving.classifier import Classes, Classifier

TRIES = 8  # random images for the test of a model
SAME = 1e-4  # largest allowed difference of an exported or reduced model, relative to the largest logit


@torch.no_grad()
def head_of(classifier: Classifier, classes: Classes) -> Tensor:
    """Return W [C, D] so that the logits of a unit-length image feature x are exp(logit scale) · W x.

    Raises
    ------
    ConfigError
        If the logits are not a linear function of one image feature.
    """
    method, width = classifier.method, classifier.backbone.image.width
    if {"patches", "image tower", "text per image"} & {*method.reads} or classifier.params.memory:
        raise _nonlinear(classifier)
    like = classifier.backbone.logit_scale

    def logits(images: Tensor) -> Tensor:
        return method.predict(classifier.params, classes.text, images.to(like), classes.frozen)

    weight = logits(torch.eye(width)).T
    tried = torch.nn.functional.normalize(torch.randn(TRIES, width, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = logits(tried)
    if not difference(tried.to(like) @ weight.T, expected) <= SAME:
        raise _nonlinear(classifier)
    return weight / like.exp()


@torch.no_grad()
def context_of(classifier: Classifier, classes: Classes) -> Tensor:
    """Return the context [M, d] if the model predicts only with the text features of class names after this context.

    Parameters
    ----------
    classifier
        The model.
    classes
        Some class names that the model has read.

    Raises
    ------
    ConfigError
        If the model has no context, several contexts, one for each class, or one for several layers.
    """
    method, like = classifier.method, classifier.backbone.logit_scale
    head_of(classifier, classes)
    rng = torch.Generator().manual_seed(0)
    contexts = [Prompt.of(context) for context in method.prompts(classifier.params, classes.frozen)]
    text = torch.randn(len(classes.text), len(classes.names), classifier.backbone.image.width, generator=rng).to(like)
    text = torch.nn.functional.normalize(text, dim=-1)
    images = torch.nn.functional.normalize(torch.randn(TRIES, text.shape[-1], generator=rng), dim=1).to(like)
    logits = method.predict(classifier.params, text, images, classes.frozen)
    for context, features in zip(contexts, text, strict=False):
        plain = context.vectors.dim() == 2 and context.layers == 1 and not context.adapters
        if plain and difference(like.exp() * images @ features.T, logits) <= SAME:
            return context.vectors
    raise ConfigError(
        f"the model of {method.name} is not a single prompt that is the same for every class name",
        where="format",
        remedy="Export a head for a list of class names, with --format clip-head or onnx",
    )


def difference(values: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected number."""
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _nonlinear(classifier: Classifier) -> ConfigError:
    return ConfigError(
        "the model cannot be exported, because its logits are not a linear function of the image feature",
        where=f"method {classifier.method.name}",
        remedy="Use the model with fedpgp predict or fedpgp.load",
    )
