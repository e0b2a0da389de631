"""Changes of drawing style, only for training: each drawing has many variants, so that the encoder learns shapes.

The changes are hue, saturation, contrast, brightness, posterization, inked outlines, line drawings and flat tints.
Random numbers come from the generator in a fixed order, as in camera.py.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from camera import BT601_LUMA, chance, per_image, random_colours, uniform


def local_range(planes: Tensor) -> Tensor:
    """Return the largest minus the smallest value among each pixel and its eight neighbours."""
    return functional.max_pool2d(planes, 3, 1, 1) + functional.max_pool2d(-planes, 3, 1, 1)


def luma_of(colour: Tensor) -> Tensor:
    """Return the luma [n, 1, h, w] of colours [n, 3, h, w]."""
    return (colour * torch.tensor(BT601_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def turn_hue(colour: Tensor, angle: Tensor) -> Tensor:
    """Turn colours [n, 3, h, w] by angle [n] about the grey axis of the RGB cube."""
    cos, sin = angle.cos(), angle.sin()
    same = cos + (1 - cos) / 3
    back = (1 - cos) / 3 - sin / math.sqrt(3)
    forth = (1 - cos) / 3 + sin / math.sqrt(3)
    rows = [torch.stack(row, -1) for row in ([same, back, forth], [forth, same, back], [back, forth, same])]
    return torch.einsum("nij,njhw->nihw", torch.stack(rows, 1), colour).clamp(0, 1)


def change_colours(colour: Tensor, generator: Generator) -> Tensor:
    """Change hue (15 % of the drawings to any), saturation (12 % to grey), contrast and brightness; posterize 10 %."""
    n = len(colour)
    grey = luma_of(colour)
    turn = uniform(n, -1, 1, generator)
    colour = turn_hue(colour, turn * torch.where(chance(n, 0.15, generator), math.pi, 0.25))
    saturation = uniform(n, 0.3, 1.5, generator)
    saturation = saturation * (1 - chance(n, 0.12, generator).float())
    colour = grey + (colour - grey) * per_image(saturation)
    contrast = per_image(uniform(n, 0.6, 1.4, generator))
    colour = (colour - 0.5) * contrast + 0.5 + per_image(uniform(n, -0.15, 0.15, generator))
    levels = per_image(uniform(n, 3, 7, generator).round())
    posterized = per_image(chance(n, 0.1, generator))
    return torch.where(posterized, (colour * levels).round() / levels, colour)


def change_style(drawings: Tensor, generator: Generator) -> Tensor:
    """Redraw drawings [n, 4, s, s] (RGBA in 0..1): new colours, then 15 % outlined, 12 % line drawings, 8 % tinted."""
    n = len(drawings)
    original, alpha = drawings[:, :3], drawings[:, 3:]
    colour = change_colours(original, generator)
    luma_on_white = luma_of(original * alpha + 1 - alpha)
    edges = (local_range(luma_on_white) * 2.2).clamp(0, 1)
    rim = local_range(alpha).clamp(0, 1)
    lines = torch.maximum(edges, rim)
    outlined = per_image(chance(n, 0.15, generator))
    colour = torch.where(outlined, colour * (1 - lines), colour)
    alpha = torch.where(outlined, torch.maximum(alpha, rim), alpha)
    only_lines = per_image(chance(n, 0.12, generator))
    ink = per_image(uniform(n, 0, 0.35, generator))
    colour = torch.where(only_lines, ink, colour)
    alpha = torch.where(only_lines, lines, alpha)
    tinted = per_image(chance(n, 0.08, generator))
    tint = random_colours(n, generator)
    colour = torch.where(tinted, tint * 0.8 + luma_on_white * 0.4, colour)
    return torch.cat([colour.clamp(0, 1), alpha], 1)
