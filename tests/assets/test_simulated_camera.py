"""The simulated camera is reproducible, is graded by severity, and stays within range."""

import pytest
import torch
from camera import blur, capture, dct_matrix, jpeg, on_white
from style_changes import change_style


def drawings(n: int = 8, size: int = 32) -> torch.Tensor:
    """Return n red discs on transparent paper, [n, 4, size, size]."""
    line = torch.linspace(-1, 1, size)
    inside = (line[:, None] ** 2 + line[None, :] ** 2 < 0.5).float()
    return torch.stack([inside, 0 * inside, 0 * inside, inside]).expand(n, -1, -1, -1)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance_from_clean(severity: float) -> float:
    captures = capture(drawings(64), 32, severity, seeded())
    return (captures - on_white(drawings(64), 32)).abs().mean().item()


def test_same_generator_gives_the_same_bytes():
    first, second = (capture(drawings(), 32, 0.6, seeded()) for _ in range(2))
    assert first.numpy().tobytes() == second.numpy().tobytes()


def test_another_seed_gives_other_captures():
    assert not torch.equal(capture(drawings(), 32, 0.6, seeded(1)), capture(drawings(), 32, 0.6, seeded(2)))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    capture(drawings(), 32, 0.6, seeded())
    change_style(drawings(), seeded())
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_severity_grades_the_captures():
    assert distance_from_clean(0.0) < 0.06  # JPEG at quality 95 of a resampled, mirrored drawing
    assert distance_from_clean(0.0) < distance_from_clean(0.3) < distance_from_clean(0.6)


def test_captures_of_one_drawing_differ():
    captures = capture(drawings(), 32, 0.6, seeded())
    assert all(not torch.equal(captures[0], other) for other in captures[1:])


@pytest.mark.parametrize("severity", [0.0, 0.6, 1.0])
def test_values_stay_in_range(severity):
    captures = capture(change_style(drawings(), seeded()), 32, severity, seeded())
    assert captures.shape == (8, 3, 32, 32)
    assert captures.isfinite().all()
    assert captures.min() >= 0
    assert captures.max() <= 1


def test_size_must_suit_the_blocks_of_jpeg():
    with pytest.raises(ValueError, match="multiple of 8"):
        capture(drawings(), 30, 0.6, seeded())


def test_cosine_transform_is_orthonormal():
    torch.testing.assert_close(dct_matrix() @ dct_matrix().T, torch.eye(8), atol=1e-6, rtol=0)


def test_jpeg_loses_more_at_lower_quality():
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    errors = [(jpeg(images, torch.full((2,), quality)) - images).abs().mean() for quality in (95.0, 50.0, 10.0)]
    assert errors[0] < errors[1] < errors[2]


def test_blur_keeps_a_plain_picture_and_spreads_a_point():
    plain = torch.full((1, 3, 16, 16), 0.4)
    torch.testing.assert_close(blur(plain, torch.tensor([1.0])), plain)
    point = torch.zeros(1, 3, 16, 16)
    point[..., 8, 8] = 1
    spread = blur(point, torch.tensor([1.0]))
    assert spread[0, 0, 8, 8] < 0.2
    assert spread.sum().item() == pytest.approx(3.0, abs=1e-4)


def test_transparent_paper_becomes_white():
    corner = on_white(drawings(1), 32)[0, :, 0, 0]
    torch.testing.assert_close(corner, torch.ones(3))
