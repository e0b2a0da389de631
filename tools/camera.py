"""Simulated camera: RGBA drawings to RGB captures, batched in torch.

Every function works on a batch of n images. Colours are floats in 0..1. Image coordinates run from -1 to 1 over the
width (x, to the right) and height (y, down) of the picture. All random numbers come from the given generator in a fixed
order, so one seed gives one result. The only parameter is the severity: 0 is a nearly clean scan, 1 is hard.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

BT601_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a picture's luma (ITU-R BT.601)

# Luminance quantisation table of the JPEG standard (ITU-T T.81, annex K.1); used for all three planes.
JPEG_TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)
CHROMA_COARSENESS = torch.tensor([1.0, 1.6, 1.6]).view(1, 3, 1, 1, 1, 1)  # colour planes lose more than luma


def dct_matrix(size: int = 8) -> Tensor:
    """Return the orthonormal type-II cosine transform as a [size, size] matrix."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * position + 1) * frequency / (2 * size))
    matrix[0] = math.sqrt(1 / size)
    return matrix.float()


DCT = dct_matrix()


def uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    """Return n uniform random numbers between low and high, shape [n]."""
    return torch.rand(n, generator=generator) * (high - low) + low


def chance(n: int, probability: float, generator: Generator) -> Tensor:
    """Return n random booleans, shape [n], which are true with the given probability."""
    return torch.rand(n, generator=generator) < probability


def per_image(values: Tensor, trailing: int = 3) -> Tensor:
    """View [n] as [n, 1, …, 1] for broadcasting; use `trailing` 2 for [n, h, w] and 3 for [n, c, h, w]."""
    return values.view(-1, *([1] * trailing))


def random_colours(n: int, generator: Generator) -> Tensor:
    """Return n random colours, shape [n, 3, 1, 1]."""
    return torch.rand(n, 3, 1, 1, generator=generator)


def pixel_grid(size: int) -> tuple[Tensor, Tensor]:
    """Return the y and x coordinates of each pixel, two tensors of shape [size, size]."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def random_view(n: int, severity: float, generator: Generator) -> Tensor:
    """Return matrices [n, 3, 3] that map image coordinates to drawing coordinates.

    At full severity, views have up to 30° of rotation, half to full size, ±18 % of aspect and of perspective, and any
    position in the picture. Half of the views are mirrored.
    """
    rotation = uniform(n, -1, 1, generator) * math.radians(30) * severity
    scale = uniform(n, 1 - 0.5 * severity, 1.02, generator)
    aspect = torch.exp(uniform(n, -0.18, 0.18, generator) * severity)
    mirror = torch.where(chance(n, 0.5, generator), -1.0, 1.0)
    scale_x, scale_y = scale * aspect * mirror, scale / aspect
    room = (1 - scale).clamp(min=0) + 0.08 * severity
    shift_x = uniform(n, -1, 1, generator) * room
    shift_y = uniform(n, -1, 1, generator) * room
    tilt_x = uniform(n, -0.18, 0.18, generator) * severity
    tilt_y = uniform(n, -0.18, 0.18, generator) * severity
    cos, sin = rotation.cos(), rotation.sin()
    drawing_to_image = torch.stack(
        [
            torch.stack([scale_x * cos, -scale_y * sin, shift_x], -1),
            torch.stack([scale_x * sin, scale_y * cos, shift_y], -1),
            torch.stack([tilt_x, tilt_y, torch.ones(n)], -1),
        ],
        1,
    )
    return torch.linalg.inv(drawing_to_image)


def warp(images: Tensor, views: Tensor, size: int) -> Tensor:
    """Return views [n, 3, 3] of images [n, c, s, s] as [n, c, size, size], transparent outside of the images."""
    y, x = pixel_grid(size)
    points = torch.stack([x, y, torch.ones_like(y)], -1).view(1, -1, 3) @ views.transpose(1, 2)
    grid = points[..., :2] / points[..., 2:].clamp(min=0.2)  # the clamp keeps points behind the camera finite
    grid = grid.view(len(images), size, size, 2)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def smooth_noise(n: int, channels: int, cells: int, size: int, generator: Generator) -> Tensor:
    """Return random values on cells × cells points, interpolated to [n, channels, size, size]."""
    coarse = torch.rand(n, channels, cells, cells, generator=generator)
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def random_background(n: int, size: int, generator: Generator) -> Tensor:
    """Return backgrounds [n, 3, size, size] of two similar colours.

    15 % are plain, 20 % gradients, 40 % blotches, and 25 % stripes or checks. A quarter of them has coloured clouds.
    """
    kind = per_image(torch.rand(n, generator=generator))
    first = random_colours(n, generator)
    second = (first + (random_colours(n, generator) - 0.5) * 0.8).clamp(0, 1)
    y, x = pixel_grid(size)
    angle = per_image(uniform(n, 0, 2 * math.pi, generator), 2)
    along = x * angle.cos() + y * angle.sin()
    across = y * angle.cos() - x * angle.sin()
    frequency = per_image(uniform(n, 4, 16, generator), 2)
    checked = per_image(chance(n, 0.5, generator), 2)
    gradient = ((along + 1.4) / 2.8).clamp(0, 1).unsqueeze(1)
    wave = (along * frequency).sin() * torch.where(checked, (across * frequency).sin(), 1.0)
    stripes = (wave > 0).float().unsqueeze(1)
    coarse, middle, fine = (smooth_noise(n, 1, cells, size, generator) for cells in (4, 8, 16))
    blotches = ((coarse * 0.5 + middle * 0.3 + fine * 0.2 - 0.5) * 2.5 + 0.5).clamp(0, 1)
    share = torch.where(kind < 0.75, blotches, stripes)
    share = torch.where(kind < 0.35, gradient, share)
    share = torch.where(kind < 0.15, torch.zeros_like(gradient), share)
    background = first * (1 - share) + second * share
    clouds = random_colours(n, generator) * smooth_noise(n, 3, 6, size, generator)
    cloudy = per_image(chance(n, 0.25, generator))
    return torch.where(cloudy, background * 0.5 + clouds * 0.6, background).clamp(0, 1)


def place(drawing: Tensor, severity: float, generator: Generator) -> Tensor:
    """Put warped drawings [n, 4, s, s] (colours multiplied by alpha) on backgrounds with a soft shadow."""
    n, size = len(drawing), drawing.shape[-1]
    colour, alpha = drawing[:, :3], drawing[:, 3:]
    background = random_background(n, size, generator)
    is_white = per_image(chance(n, 1 - 0.9 * min(1.0, severity * 1.3), generator))
    background = torch.where(is_white, torch.ones_like(background), background)
    darkness = per_image(uniform(n, 0, 0.5, generator)) * severity
    shadow = torch.roll(functional.avg_pool2d(functional.pad(alpha, (2, 2, 2, 2)), 5, 1), (2, 2), (2, 3))
    return colour + background * (1 - darkness * shadow) * (1 - alpha)


def relight(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Change brightness, add light from one side, tint white, and bend the tone curve."""
    n, size = len(images), images.shape[-1]
    y, x = pixel_grid(size)
    angle = per_image(uniform(n, 0, 2 * math.pi, generator), 2)
    side_light = (x * angle.cos() + y * angle.sin()).unsqueeze(1)
    side_light = side_light * per_image(uniform(n, 0, 0.4, generator)) * severity
    brightness = per_image(uniform(n, 1 - 0.45 * severity, 1 + 0.3 * severity, generator))
    images = images * (brightness + side_light)
    white = 1 + (random_colours(n, generator) - 0.5) * 0.35 * severity
    images = (images * white).clamp(1e-3, 1)
    gamma = torch.exp(uniform(n, -0.4, 0.4, generator) * severity)
    return images ** per_image(gamma)


def occlude(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Cover part of some images with one upright rectangle of a plain colour."""
    n, size = len(images), images.shape[-1]
    y, x = pixel_grid(size)
    centre_x = per_image(uniform(n, -0.9, 0.9, generator), 2)
    centre_y = per_image(uniform(n, -0.9, 0.9, generator), 2)
    half_width = per_image(uniform(n, 0.1, 0.38, generator) * severity, 2)
    half_height = per_image(uniform(n, 0.1, 0.38, generator) * severity, 2)
    covered = per_image(chance(n, 0.5 * severity, generator), 2)
    inside = ((x - centre_x).abs() < half_width) & ((y - centre_y).abs() < half_height) & covered
    return torch.where(inside.unsqueeze(1), random_colours(n, generator), images)


def sum_of(terms: list[Tensor]) -> Tensor:
    """Sum from left to right, so that rounding is always the same."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Apply Gaussian blur with a standard deviation of sigma [n] pixels and seven taps in each direction."""
    offsets = torch.arange(-3, 4).float()
    weights = torch.exp(-0.5 * (offsets[None] / sigma.clamp(min=0.05)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    height, width = images.shape[-2:]
    padded = functional.pad(images, (3, 3, 0, 0), mode="replicate")
    across = [padded[..., i : i + width] * per_image(weights[:, i]) for i in range(7)]
    padded = functional.pad(sum_of(across), (0, 0, 3, 3), mode="replicate")
    return sum_of([padded[..., i : i + height, :] * per_image(weights[:, i]) for i in range(7)])


def add_noise(images: Tensor, severity: float, generator: Generator) -> Tensor:
    """Add Gaussian noise with a standard deviation of up to 0.08."""
    noise = torch.randn(images.shape, generator=generator)
    return images + noise * per_image(uniform(len(images), 0, 0.08, generator)) * severity


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Apply the loss of JPEG: 8 × 8 blocks of YCbCr, quantised in the cosine domain with quality [n] in 0..100.

    The size of the images must be a multiple of 8. Chroma is not subsampled. Qualities follow the scale of the IJG.
    """
    n, _, size, _ = images.shape
    red, green, blue = images.unbind(1)
    luma = BT601_LUMA[0] * red + BT601_LUMA[1] * green + BT601_LUMA[2] * blue
    planes = torch.stack([luma, (blue - luma) * 0.564 + 0.5, (red - luma) * 0.713 + 0.5], 1) * 255 - 128
    blocks = planes.view(n, 3, size // 8, 8, size // 8, 8).permute(0, 1, 2, 4, 3, 5)
    coefficients = DCT @ blocks @ DCT.T
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    step = (JPEG_TABLE[None] * per_image(scale, 2)).clamp(min=1).view(n, 1, 1, 1, 8, 8) * CHROMA_COARSENESS
    blocks = DCT.T @ (torch.round(coefficients / step) * step) @ DCT
    planes = (blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, 3, size, size) + 128) / 255
    luma, blue_difference, red_difference = planes[:, 0], planes[:, 1] - 0.5, planes[:, 2] - 0.5
    red = luma + 1.403 * red_difference
    blue = luma + 1.773 * blue_difference
    green = (luma - BT601_LUMA[0] * red - BT601_LUMA[2] * blue) / BT601_LUMA[1]
    return torch.stack([red, green, blue], 1).clamp(0, 1)


def capture(drawings: Tensor, size: int, severity: float, generator: Generator) -> Tensor:
    """Return RGB captures [n, 3, size, size] of drawings [n, 4, s, s] (RGBA in 0..1, colours not multiplied by alpha).

    Parameters
    ----------
    size
        Side of the captures in pixels, a multiple of 8.
    severity
        Severity from 0 (nearly clean: only JPEG at quality 95) to 1 (hard).
    generator
        Source of all random numbers.
    """
    if size % 8:
        raise ValueError(f"the size of captures must be a multiple of 8, the size of JPEG blocks, got {size}")
    n = len(drawings)
    colour, alpha = drawings[:, :3], drawings[:, 3:]
    views = random_view(n, severity, generator)
    images = place(warp(torch.cat([colour * alpha, alpha], 1), views, size), severity, generator)
    images = relight(images, severity, generator)
    images = occlude(images, severity, generator)
    images = blur(images, uniform(n, 0.05, 1.1, generator) * severity)
    images = add_noise(images, severity, generator).clamp(0, 1)
    return jpeg(images, 95 - uniform(n, 0, 65, generator) * severity)


def on_white(drawings: Tensor, size: int) -> Tensor:
    """Return clean renders [n, 3, size, size] of drawings [n, 4, s, s] on white."""
    colour, alpha = drawings[:, :3], drawings[:, 3:]
    images = colour * alpha + 1 - alpha
    return functional.interpolate(
        images, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
