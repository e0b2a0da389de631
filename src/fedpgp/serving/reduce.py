"""What a model comes down to where its method is simple enough, found by asking it: no method is named here.

Letters: B images, C classes, D feature width, M context vectors, d token width.
"""

import torch
from torch import Tensor

from fedpgp.backbone.layers import Prompt
from fedpgp.errors import ConfigError
from fedpgp.serving.classifier import Classes, Classifier

TRIES = 8  # images and class names that a model is asked about
SAME = 1e-4  # of the largest logit, the most by which an exported or reduced model may differ


@torch.no_grad()
def head_of(classifier: Classifier, classes: Classes) -> Tensor:
    """W [C, D] with which the logits of an image feature x of unit length are exp(logit scale) · W x.

    Raises ConfigError where they are not linear in one image feature.
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
    """The context [M, d] behind whose class names the text features are all that a model predicts with.

    classes: some that the model has read. Raises ConfigError where it has none, one for each class, one for several
    layers, or mixes several.
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
    """The largest difference, as a share of the largest number that is expected."""
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _nonlinear(classifier: Classifier) -> ConfigError:
    return ConfigError(
        "the model cannot be exported, because its logits are not a linear function of the image feature",
        where=f"method {classifier.method.name}",
        remedy="Use the model with fedpgp predict or fedpgp.load",
    )
