"""The feature cache: what it keeps, and what it does not trust."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpgp.backbone import Backbone
from fedpgp.data.features import image_features
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.errors import OutputError


@pytest.fixture
def images(small_source: Source) -> ImageDataset:
    return small_source.validation


def encoded(backbone: Backbone, images: ImageDataset, directory: Path) -> tuple[torch.Tensor, int, list[Path]]:
    """Features, the number of progress reports, and the files that were made again."""
    reports: list[int] = []
    rebuilt: list[Path] = []
    features = image_features(backbone, images, directory, lambda done, total: reports.append(done), rebuilt.append)
    return features, len(reports), rebuilt


def test_features_are_those_of_the_images_in_order(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    features, _, _ = encoded(backbone, images, tmp_path)
    assert features.shape == (len(images), 128)
    for index in (0, 7, len(images) - 1):
        torch.testing.assert_close(features[index], backbone.image([images.image(index)])[0], atol=1e-6, rtol=0)


def test_second_time_encodes_nothing(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    first, reports, _ = encoded(backbone, images, tmp_path)
    again, none, rebuilt = encoded(backbone, images, tmp_path)
    assert (reports > 0, none, rebuilt) == (True, 0, [])
    assert torch.equal(first, again)


@pytest.mark.parametrize("damage", ["truncated", "altered", "of another split", "empty"])
def test_damaged_cache_is_told_and_made_again(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, damage: str
) -> None:
    first, _, _ = encoded(backbone, images, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-10])
    elif damage == "altered":
        content[-10] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        save_file(load_file(file), file, {"backbone": "another", "images": "others", "sha256": "0"})
    again, reports, rebuilt = encoded(backbone, images, tmp_path)
    assert rebuilt == [file]
    assert reports > 0
    assert torch.equal(first, again)
    assert encoded(backbone, images, tmp_path)[1] == 0


def test_other_precision_is_another_file(
    backbone: Backbone, exact: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    single, _, _ = encoded(backbone, images, tmp_path)
    double, reports, _ = encoded(exact, images, tmp_path)
    assert reports > 0
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=0)


def test_directory_that_cannot_be_written(backbone: Backbone, images: ImageDataset) -> None:
    with pytest.raises(OutputError, match=r"feature cache cannot be written to /proc/fedpgp.*--cache-dir"):
        image_features(backbone, images, Path("/proc/fedpgp"))
