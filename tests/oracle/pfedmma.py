"""pFedMMA (Ghiasvand et al. 2026, arXiv 2507.05394), image by image, with gradients scaled as in MMA's code.

MMA's code has two layers around an adapter that do not change values but multiply their gradient: the input's by α, and
the output's by 1/α.
"""

import torch

from oracle.clip_image import tower_features
from oracle.clip_text import prompt_features, template_features
from oracle.training import cross_entropy, federate


class Turned(torch.autograd.Function):
    """The identity, with a multiplied gradient."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def relu(x):
    """ReLU with slope 0 at 0, as in PyTorch. With initial biases of 0 and input 0, many values are exactly 0."""
    return torch.where(x > 0, x, 0)


def adapters(theta, tower, alpha):
    """For each layer of a tower, the output of its adapter for the layer's normalized input."""

    def beside(number):
        W_d, b_d = theta[f"{tower}.{number}.down.weight"], theta[f"{tower}.{number}.down.bias"]
        W_s, b_s = theta[f"middle.{number}.weight"], theta[f"middle.{number}.bias"]
        W_u, b_u = theta[f"{tower}.{number}.up.weight"], theta[f"{tower}.{number}.up.bias"]

        def add(x):
            u = Turned.apply(x, alpha)
            u = relu(u @ W_d.T + b_d)
            u = relu(u @ W_s.T + b_s)
            return Turned.apply(alpha * (u @ W_u.T + b_u), 1 / alpha)

        return add

    return {n: beside(n) for n in range(100) if f"{tower}.{n}.down.weight" in theta}


def run(world, alpha, start_layer):
    scale = torch.exp(world.clip.logit_scale)

    def text_features(theta, names):
        beside = adapters(theta, "text", alpha)
        if not beside:
            return template_features(world.clip, world.tokenizer, "a photo of a {}.", names)
        nothing = torch.empty(0, world.clip.config.text_config.hidden_size, dtype=torch.float64)
        return prompt_features(world.clip, world.tokenizer, nothing, names, (), beside, "a photo of a {}.")

    def logits_of(theta, images, names):
        seen = tower_features(world.clip, images.tokens, (), adapters(theta, "image", alpha), start_layer - 1)
        return scale * seen @ text_features(theta, names).T

    def loss_of(theta, images, labels, start, client):
        return cross_entropy(logits_of(theta, images, world.names), labels)

    shared = [name for name in world.first[0] if name.startswith("middle")]
    return federate(world, shared, loss_of, lambda theta, images, names, client: logits_of(theta, images, names))
