"""KgCoOp (Yao et al., CVPR 2023, arXiv 2303.13283) on every client, averaged."""

import torch

from oracle.clip_text import prompt_features, template_features
from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate


def guidance_of(world, templates):
    """The mean over templates of a class's features, of unit length."""
    rows = []
    of_templates = [template_features(world.clip, world.tokenizer, template, world.names) for template in templates]
    for c in range(len(world.names)):
        total = sum(features[c] for features in of_templates)
        rows.append(total / torch.sqrt((total * total).sum()))
    return torch.stack(rows)


def run(world, weight, templates=("a photo of a {}.",)):
    """L = CE + weight · 1/C Σ_c ‖z_c − z_C,c‖²."""
    z_C = guidance_of(world, templates)

    def loss_of(theta, images, labels, start, client):
        z = prompt_features(world.clip, world.tokenizer, theta["p_G"], world.names)
        distance = 0
        for c in range(len(z)):
            distance = distance + ((z[c] - z_C[c]) ** 2).sum()
        logits = torch.exp(world.clip.logit_scale) * images @ z.T
        return cross_entropy(logits, labels) + weight * distance / len(z)

    return federate(
        world, ["p_G"], loss_of, lambda theta, images, names, client: logits_of(world, theta["p_G"], images, names)
    )
