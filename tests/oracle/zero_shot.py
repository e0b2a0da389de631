"""CLIP without training (Radford et al. 2021, arXiv 2103.00020)."""

import torch

from oracle.clip_text import template_features


def logits_of(clip, tokenizer, names, images):
    """exp(logit_scale) · f(x) · g("a photo of a {class}.")."""
    return torch.exp(clip.logit_scale) * images @ template_features(clip, tokenizer, "a photo of a {}.", names).T
