"""Augmented views: position of the crops, and what they depend on."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedpgp.data.augment import AREA, RATIO, SEED, random_box, random_view
from fedpgp.runtime.randomness import generator

sides = st.integers(1, 600)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(width=sides, height=sides, seed=st.integers(0, 2**32))
def test_box_lies_inside_the_picture(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, drawn(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(width=st.integers(50, 600), height=st.integers(50, 600), seed=st.integers(0, 2**32))
def test_area_and_ratio_are_in_range(width: int, height: int, seed: int) -> None:
    """Holds up to rounding to pixels; even in a picture of 12 : 1, some box has at least 8 % of the area."""
    left, top, right, bottom = random_box(width, height, drawn(seed))
    w, h = right - left, bottom - top
    assert (w - 0.5) * (h - 0.5) <= AREA[1] * width * height
    assert RATIO[0] <= (w + 0.5) / (h - 0.5)
    assert (w - 0.5) / (h + 0.5) <= RATIO[1]
    if max(width, height) <= 4 * min(width, height):
        assert (w + 0.5) * (h + 0.5) >= AREA[0] * width * height


def test_boxes_spread_over_area_ratio_and_place() -> None:
    boxes = np.array([random_box(400, 300, drawn(seed)) for seed in range(2000)])
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / (400 * 300)
    assert area.min() < 0.1
    assert area.max() > 0.9
    assert 0.4 < area.mean() < 0.54  # uniform in (0.08, 1) has mean 0.54; boxes that do not fit are drawn again
    ratio = (right - left) / (bottom - top)
    assert abs(np.log(ratio).mean()) < 0.05  # uniform in the logarithm: wide and tall boxes are equally likely
    small = area < 0.3
    assert abs(((left + right) / 800)[small].mean() - 0.5) < 0.03
    assert abs(((top + bottom) / 600)[small].mean() - 0.5) < 0.03


def test_too_oblong_a_picture_gets_its_middle() -> None:
    assert random_box(1000, 10, drawn(0)) == (493, 0, 506, 10)
    assert random_box(10, 1000, drawn(0)) == (0, 493, 10, 506)


@given(index=st.integers(0, 10**6), view=st.integers(1, 100), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_view_depends_on_image_and_number_alone(index: int, view: int, seed: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    first = random_view(picture, (24, 24), index, view)
    torch.manual_seed(seed)  # must not depend on the global generator or on earlier draws
    random_view(picture, (24, 24), seed, view)
    assert first.size == (24, 24)
    assert random_view(picture, (24, 24), index, view).tobytes() == first.tobytes()
    assert random_view(picture, (24, 24), index, view + 1).tobytes() != first.tobytes()
    assert random_view(picture, (24, 24), index + 1, view).tobytes() != first.tobytes()


def test_half_of_the_views_are_flipped() -> None:
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")  # brighter to the right
    views = [np.asarray(random_view(ramp, (16, 16), 0, view), dtype=float) for view in range(1, 401)]
    flipped = sum(view[:, 0].mean() > view[:, -1].mean() for view in views)
    assert 160 < flipped < 240


def test_view_is_the_resized_crop() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    box = random_box(120, 90, generator(SEED, "view", 4, 2))
    plain = picture.crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    seen = random_view(picture, (32, 32), 4, 2).tobytes()
    assert seen in (plain.tobytes(), plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes())
