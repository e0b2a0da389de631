"""Patch features and image tower states, stored on disk like pooled features."""

import hashlib
import json
import pickle
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raising import raises
from rich.filesize import decimal
from safetensors import safe_open
from test_features import Ear, broken, count, encoded, only_file

from fedpgp.backbone import Backbone
from fedpgp.backbone.image import PATCHES, POOLED, ImageEncoder, state_below
from fedpgp.backbone.layers import Prompt
from fedpgp.data import cache as feature_cache
from fedpgp.data import features
from fedpgp.data.cache import check_room, entries, versions
from fedpgp.data.features import SplitPart, ViewFeatures, token_features, views_of
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.errors import CheckpointError, OutputError

SHAPES = {PATCHES: (36, 128), state_below(0): (37, 160), state_below(3): (37, 160)}  # of pictoclip
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def images(small_source: Source) -> ImageDataset:
    """Twelve pictures."""
    return small_source.validation.select(np.arange(0, len(small_source.validation), 4)[:12])


@pytest.fixture
def short_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "SHARD", 4)
    yield


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Pretend that this number of bytes is free on every disk."""
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: Usage(10**15, 10**15 - free, free))


@dataclass(frozen=True)
class Watched:
    """Pictures that record which of them were decoded."""

    pictures: Callable[[int], Image.Image]
    seen: list[int]

    def __call__(self, index: int) -> Image.Image:
        self.seen.append(index)
        return self.pictures(index)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_kept_is_what_the_tower_says_of_each_image(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, kind: str
) -> None:
    found = encoded(backbone, images, tmp_path, kind=kind).features
    assert found.shape == (len(images), *SHAPES[kind]) == (len(images), *backbone.image.shape(kind))
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    for index in (0, 5, len(images) - 1):
        pixels = backbone.image.processor(images=[images.image(index)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found[index], backbone.image.encode(pixels, kind)[0], atol=2e-5, rtol=0)
    assert (count(backbone, images, tmp_path, kind=kind), count(backbone, images, tmp_path)) == (0, len(images))


def test_kinds_and_precisions_have_files_of_their_own(
    backbone: Backbone, exact: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    ways = [{}, *({"kind": kind, "half": half} for kind in SHAPES for half in (False, True))]
    for way in ways:
        assert count(backbone, images, tmp_path, **way) == len(images)
    assert all(count(backbone, images, tmp_path, **way) == 0 for way in ways)
    assert count(exact, images, tmp_path, kind=PATCHES) == len(images)
    assert encoded(exact, images, tmp_path, kind=PATCHES).features.dtype == torch.float64
    assert sorted(entry.kind for entry in entries(tmp_path)) == sorted(
        ["pooled", "patches float64", *(f"{kind} {dtype}" for kind in SHAPES for dtype in ("float32", "float16"))]
    )
    assert {(entry.split, entry.images, entry.state) for entry in entries(tmp_path)} == {("validation", 12, "current")}


@pytest.mark.parametrize("kind", SHAPES)
def test_float16_takes_half_and_rounds_off_less_than_a_thousandth(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, kind: str
) -> None:
    full = encoded(backbone, images, tmp_path / "full", kind=kind).features
    half = encoded(backbone, images, tmp_path / "half", kind=kind, half=True).features
    assert half.dtype == torch.float16
    sizes = [only_file(tmp_path / name).stat().st_size for name in ("full", "half")]
    header = sizes[0] - 4 * full.numel()
    assert 0 < header < 2000
    assert abs(sizes[1] - header - 2 * full.numel()) < 16
    assert ((half.float() - full).abs() <= 1e-3 * full.abs() + 1e-7).all()
    assert not torch.equal(half.float(), full)


def tokens(backbone, parts, directory, ear=None, half=False):
    ear = ear or Ear()
    return token_features(backbone.image, parts, directory, half=half, progress=ear.progress, notice=ear.notice)


@pytest.mark.parametrize(("half", "size"), [(False, 12 * 36 * 128 * 4), (True, 12 * 36 * 128 * 2)])
def test_the_size_is_said_before_anything_is_written(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, half: bool, size: int
) -> None:
    said: list[str] = []

    def notice(text: str) -> None:
        said.append(text)
        assert list(tmp_path.rglob("*")) == []

    parts = [SplitPart(images, np.arange(12), PATCHES, [0])]
    token_features(backbone.image, parts, tmp_path, half=half, notice=notice)
    assert said == [f"the feature cache will grow by {decimal(size)}: patch features"]
    assert decimal(size) == ("110.6 kB" if half else "221.2 kB")
    ear = Ear()
    tokens(backbone, parts, tmp_path, ear, half)
    assert ear.said == []


def test_a_disk_without_room_is_reported_before_anything_is_encoded(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and its shards exist at the same time before the file replaces them."""
    size = 37 * 160 * 4
    needed = (8 + 12) * size + 12 * size
    room(monkeypatch, needed - 1)
    watched, ear = Watched(images.image, []), Ear()
    parts = [SplitPart(replace(images, image=watched), np.arange(n), state_below(2), [0]) for n in (8, 12)]
    with raises(OutputError, where=str(tmp_path), problem="needs 757.8 kB, 473.6 kB", remedy="--cache-dir") as error:
        tokens(backbone, parts, tmp_path, ear)
    assert "--set data.token_precision=float16" in error.value.remedy
    assert (watched.seen, ear.said, ear.done) == ([], [], [])
    assert list(tmp_path.rglob("*")) == []
    tokens(backbone, parts, tmp_path / "half", half=True)
    room(monkeypatch, needed)
    tokens(backbone, parts, tmp_path)
    room(monkeypatch, 0)
    tokens(backbone, parts, tmp_path, ear)
    assert ear.said == []
    assert count(backbone, images, tmp_path) == len(images)  # the entry is small, and the same as before


@pytest.mark.usefixtures("short_shards")
def test_an_interrupted_encoding_goes_on_and_needs_only_the_room_of_the_rest(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(backbone, images, tmp_path / "whole", kind=PATCHES).features
    with pytest.raises(KeyboardInterrupt):
        encoded(backbone, images, tmp_path, Ear(stop_at=10), kind=PATCHES)  # two shards of four are complete
    assert [(entry.kind, entry.state, entry.images) for entry in entries(tmp_path)] == [
        ("patches float32", "unfinished", 8)
    ]
    size = 12 * 36 * 128 * 4
    room(monkeypatch, 2 * size - size * 8 // 12)  # the headers of the shards make up for the rest
    check_room({ViewFeatures(backbone.image, images, tmp_path, PATCHES).entry: size}, tmp_path)
    ear = Ear()
    again, new = ViewFeatures(backbone.image, images, tmp_path, kind=PATCHES, progress=ear.progress).load()
    assert (new, ear.done[0]) == (4, 8)
    assert torch.equal(again.features, whole)


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_told_and_made_again(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, damage: str
) -> None:
    first = encoded(backbone, images, tmp_path, kind=PATCHES, half=True).features.clone()
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes({"truncated": content[:-100], "altered": content, "empty": b""}[damage])
    ear = Ear()
    again = encoded(backbone, images, tmp_path, ear, kind=PATCHES, half=True).features
    assert ear.said == [f"feature cache {file} is damaged: computing it again"]
    assert torch.equal(first, again)
    assert count(backbone, images, tmp_path, kind=PATCHES, half=True) == 0


def test_only_images_that_are_used_are_encoded_and_found_at_their_places(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    whole = encoded(backbone, images, tmp_path / "whole", kind=PATCHES).features
    watched, used = Watched(images.image, []), np.array([1, 4, 5, 11])
    ear = Ear()
    ((kept,), places) = tokens(
        backbone, [SplitPart(replace(images, image=watched), used, PATCHES, [0])], tmp_path, ear
    )[0]
    assert watched.seen == used.tolist()
    assert places.tolist() == [-1, 0, -1, -1, 1, 2, -1, -1, -1, -1, -1, 3]
    torch.testing.assert_close(kept, whole[used], atol=2e-5, rtol=0)
    assert ear.said == [f"the feature cache will grow by {decimal(kept.nbytes)}: patch features"]
    assert only_file(tmp_path).stat().st_size < kept.nbytes + 2000
    ((again,), _) = tokens(backbone, [SplitPart(images, used, PATCHES, [0])], tmp_path)[0]
    assert torch.equal(again, kept) and len(watched.seen) == 4
    tokens(backbone, [SplitPart(replace(images, image=watched), used[:3], PATCHES, [0])], tmp_path)
    assert watched.seen == [1, 4, 5, 11, 1, 4, 5] and len(entries(tmp_path)) == 2  # a second file


def test_a_random_view_is_the_same_crop_whatever_is_selected_beside_the_image(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    """Pooled features cover the whole split and patch features a selection, but both see the same crop."""
    whole = {view: encoded(backbone, images, tmp_path, kind=state_below(1), view=view).features for view in (1, 2)}
    used = np.array([2, 3, 7, 10])
    ((kept, places),) = tokens(backbone, [SplitPart(images, used, state_below(1), views_of("train", 2))], tmp_path)
    assert [view.shape for view in kept] == [(4, 37, 160)] * 2
    for view in (1, 2):
        torch.testing.assert_close(kept[view - 1][places[used]], whole[view][used], atol=2e-5, rtol=0)
    assert (kept[0] - kept[1]).flatten(1).norm(dim=1).min() > 0.1
    (last,) = backbone.image.tower.each(kept[0], [Prompt(torch.empty(0, 160))], 1)
    pooled = encoded(backbone, images, tmp_path, view=1).features[used]
    torch.testing.assert_close(last, pooled, atol=1e-5, rtol=0)


def test_a_selection_of_a_selection_keeps_the_numbers_of_the_split(images: ImageDataset, pictograms: Source) -> None:
    """Some images do not decode, and only some of the others are used."""
    split = pictograms.validation
    assert [split.number(index) for index in (0, 7)] == [0, 7]
    first = split.select(np.array([3, 5, 8, 13, 20]))
    second = first.select(np.array([0, 2, 4]))
    assert [second.number(index) for index in range(3)] == [3, 8, 20]
    assert second.describe(1) == split.describe(8)
    assert second.image(2).tobytes() == split.image(20).tobytes()
    assert len({split.fingerprint, first.fingerprint, second.fingerprint}) == 3


def test_the_file_of_pooled_features_is_where_it_has_always_been(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    """The name of a file of pooled features depends on the same facts as before there were other kinds."""
    encoded(backbone, images, tmp_path, kind=POOLED)
    origin = {
        "format": "3",
        "data": "pictograms",
        "split": "validation",
        "images": images.fingerprint,
        "view": "0",
        "encoder": backbone.image.fingerprint,
        "device": "cpu",
        "versions": versions(),
    }
    key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]
    file = only_file(tmp_path)
    assert file.name == f"pictograms-validation-{key}.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata().keys() == origin.keys() | {"undecodable", "sha256"}
    assert count(backbone, images, tmp_path) == 0


def test_an_image_that_does_not_decode_has_zeros_and_its_reason(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    whole = encoded(backbone, images, tmp_path / "whole", kind=PATCHES).features
    bad = broken(images, _9=OSError("cut"))
    kept = encoded(backbone, bad, tmp_path, kind=PATCHES, skip_bad_images=True)
    assert kept.undecodable == {9: "cut"}
    assert not kept.features[9].any()
    good = [index for index in range(len(images)) if index != 9]
    torch.testing.assert_close(kept.features[good], whole[good], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("half", "value", "remedy"),
    [(True, 1e5, "data.token_precision=full"), (False, float("nan"), "backbone.precision=float32")],
)
def test_a_value_that_is_not_finite_stops_the_encoding_and_the_remedy_fits(
    backbone: Backbone,
    images: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    half: bool,
    value: float,
    remedy: str,
) -> None:
    """A state of 100,000 is too large for float16."""

    def encode(encoder: ImageEncoder, pixels: torch.Tensor, kind: str) -> torch.Tensor:
        found = torch.ones(len(pixels), *encoder.shape(kind))
        found[3, 7, 11] = value
        return found

    monkeypatch.setattr(ImageEncoder, "encode", encode)
    with raises(CheckpointError, where=images.describe(3), remedy=f"--set {remedy}"):
        encoded(backbone, images, tmp_path, kind=state_below(0), half=half)


def test_kept_numbers_are_mapped_not_read(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    """The features of every view are mapped."""
    ((kept, _),) = tokens(backbone, [SplitPart(images, np.arange(12), state_below(0), views_of("train", 3))], tmp_path)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    ranges = [[int(part, 16) for part in line.split()[0].split("-")] for line in mapped]
    assert len(kept) == 3
    assert all(any(start <= view.data_ptr() < end for start, end in ranges) for view in kept)


def test_images_find_their_rows_in_the_precision_of_their_features() -> None:
    """Five images of a split of eight, with the rows of `kept` in another order."""
    kept = torch.arange(8 * 2 * 3).reshape(8, 2, 3).half()
    images = ImageFeatures(torch.arange(5.0)[:, None].expand(5, 4).double(), [kept], torch.tensor([7, 0, 3, 3, 1]))
    assert len(images) == 5 and not images.viewed
    assert images.tokens.dtype == torch.float64
    assert torch.equal(images.tokens, kept[[7, 0, 3, 3, 1]].double())
    some = images[torch.tensor([4, 0])]
    assert (len(some), some.pooled[:, 0].tolist()) == (2, [4.0, 0.0]) and some.kept[0] is kept
    assert torch.equal(some.tokens, kept[[1, 7]].double())
    assert torch.equal(images[1:3].tokens, kept[[0, 3]].double())
    sent = pickle.loads(pickle.dumps(some))
    assert torch.equal(sent.tokens, some.tokens) and len(sent.kept[0]) == 2
    assert torch.equal(sent[torch.tensor([1])].tokens, some[torch.tensor([1])].tokens)


def test_one_view_of_each_image_is_the_same_in_everything_that_is_kept() -> None:
    kept = torch.arange(3 * 4 * 2).reshape(3, 4, 2).float()  # three views of four images
    pooled = torch.arange(3 * 3 * 5).reshape(3, 3, 5).float()
    images = ImageFeatures(pooled, list(kept), torch.tensor([2, 0, 3]))
    assert images.viewed
    for some in (images, pickle.loads(pickle.dumps(images))):
        one = some.views(torch.tensor([1, 2, 0]))
        assert not one.viewed
        assert torch.equal(one.pooled, pooled[[0, 1, 2], [1, 2, 0]])
        assert torch.equal(one.tokens, kept[[1, 2, 0], [2, 0, 3]])
        assert torch.equal(one[torch.tensor([2])].tokens[0], kept[0, 3])
    plain = ImageFeatures(pooled).views(torch.tensor([0, 0, 2]))
    assert torch.equal(plain.pooled, pooled[[0, 1, 2], [0, 0, 2]])
    assert torch.equal(pickle.loads(pickle.dumps(plain)).pooled, plain.pooled)
    with pytest.raises(AssertionError, match="only pooled features"):
        _ = plain.tokens
