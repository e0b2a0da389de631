"""Image features: each image is encoded once, even after interruptions; bad images; views."""

import errno
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raising import raises
from safetensors.torch import load_file, save_file

import fedpgp
from fedpgp.backbone import Backbone, load_backbone
from fedpgp.data import cache as feature_cache
from fedpgp.data import features
from fedpgp.data.cache import Kept, entries
from fedpgp.data.decode import decode
from fedpgp.data.features import ViewFeatures, split_features
from fedpgp.data.preprocess import AHEAD, in_threads
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.subset import part_of, without
from fedpgp.errors import CheckpointError, DataError, OutputError


@pytest.fixture(scope="session")
def backbone(compact: Backbone) -> Backbone:
    return compact


@pytest.fixture
def images(small_source: Source) -> ImageDataset:
    return small_source.validation


@dataclass
class Ear:
    """Record progress and notices; raise KeyboardInterrupt after `stop_at` images."""

    stop_at: int | None = None
    said: list[str] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    def progress(self, what: str, done: int, total: int, detail: str) -> None:
        self.done.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt

    def notice(self, text: str) -> None:
        self.said.append(text)


def encoded(backbone: Backbone, images: ImageDataset, directory: Path, ear: Ear | None = None, **options) -> Kept:
    ear = ear or Ear()
    options |= {"progress": ear.progress, "notice": ear.notice}
    return ViewFeatures(backbone.image, images, directory, **options).load()[0]


def count(backbone: Backbone, images: ImageDataset, directory: Path, **options) -> int:
    """Return the number of images that must be encoded."""
    return ViewFeatures(backbone.image, images, directory, **options).load()[1]


def only_file(directory: Path) -> Path:
    (file,) = directory.glob("*.safetensors")
    return file


@dataclass(frozen=True)
class Broken:
    """Raise an error for some images of a dataset."""

    image: object
    bad: dict[int, Exception]

    def __call__(self, index: int) -> Image.Image:
        if index in self.bad:
            raise self.bad[index]
        return self.image(index)


def broken(images: ImageDataset, **bad: Exception) -> ImageDataset:
    faults = {int(name[1:]): error for name, error in bad.items()}
    return replace(images, image=Broken(images.image, faults), fingerprint=f"{images.fingerprint} {sorted(faults)}")


@pytest.fixture
def short_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(features, "BATCH", 8)
    monkeypatch.setattr(features, "SHARD", 16)
    yield


def test_features_are_those_of_the_images_in_order(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    found = encoded(backbone, images, tmp_path).features
    assert found.shape == (len(images), 128)
    for index in (0, 7, len(images) - 1):
        torch.testing.assert_close(found[index], backbone.image([images.image(index)])[0], atol=1e-6, rtol=0)


def test_second_time_encodes_nothing(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    first, new = ViewFeatures(backbone.image, images, tmp_path).load()
    again, none = ViewFeatures(backbone.image, images, tmp_path).load()
    assert (new, none) == (len(images), 0)
    assert torch.equal(first.features, again.features)
    assert list(tmp_path.glob("*.shards")) == list(tmp_path.glob("*.writing")) == []


def test_kept_features_are_mapped_not_read(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    kept = encoded(backbone, images, tmp_path)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(only_file(tmp_path)) in line]
    ranges = [[int(part, 16) for part in line.split()[0].split("-")] for line in mapped]
    assert any(start <= kept.features.data_ptr() < end for start, end in ranges)


@pytest.mark.parametrize("damage", ["truncated", "altered", "of another split", "empty", "undecodable changed"])
def test_damaged_cache_is_told_and_made_again(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, damage: str
) -> None:
    first = encoded(backbone, images, tmp_path).features.clone()
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-10])
    elif damage == "altered":
        content[-10] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "undecodable changed":
        assert content.count(b'"undecodable":"{}"') == 1
        file.write_bytes(content.replace(b'"undecodable":"{}"', b'"undecodable":"[]"'))
    else:
        save_file(load_file(file), file, {"backbone": "another", "images": "others", "sha256": "0"})
    ear = Ear()
    again, new = ViewFeatures(backbone.image, images, tmp_path, notice=ear.notice).load()
    assert ear.said == [f"feature cache {file} is damaged: computing it again"]
    assert new == len(images)
    assert torch.equal(first, again.features)
    assert count(backbone, images, tmp_path) == 0


def test_other_weights_preprocessing_precision_or_versions_are_not_matched(
    compact: Backbone, exact: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = encoded(compact, images, tmp_path).features
    double = encoded(exact, images, tmp_path).features
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=0)
    monkeypatch.setattr(features, "versions", lambda: "torch 0")
    assert count(compact, images, tmp_path) == len(images)


def test_bf16_takes_the_image_features_of_float32(
    backbone: Backbone, compact_checkpoint: Path, images: ImageDataset, tmp_path: Path
) -> None:
    encoded(backbone, images, tmp_path)
    assert count(load_backbone(str(compact_checkpoint), "bf16"), images, tmp_path) == 0


def test_fingerprint_is_of_weights_and_preprocessing_not_of_the_text_tower(backbone: Backbone) -> None:
    import copy

    model = copy.deepcopy(backbone.image.model)
    processor = copy.deepcopy(backbone.image.processor)
    same = replace(backbone.image, model=model, processor=processor).fingerprint
    assert same == backbone.image.fingerprint
    model.text_projection.weight += 1
    assert replace(backbone.image, model=model).fingerprint == same
    model.visual_projection.weight[0, 0] += 1e-3
    assert replace(backbone.image, model=model).fingerprint != same
    processor.image_mean = [0.5, 0.5, 0.5]
    assert replace(backbone.image, processor=processor).fingerprint != same


@pytest.mark.usefixtures("short_shards")
def test_interrupted_encoding_goes_on_to_the_same_bits(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    whole = encoded(backbone, images, tmp_path / "whole").features
    with pytest.raises(KeyboardInterrupt):
        encoded(backbone, images, tmp_path / "cut", Ear(stop_at=40))  # two shards of 16 are complete
    (tmp_path / "cut").joinpath("pictograms").touch()  # foreign files do not matter
    assert [entry.state for entry in entries(tmp_path / "cut")] == ["unfinished"]
    ear = Ear()
    again, new = ViewFeatures(backbone.image, images, tmp_path / "cut", progress=ear.progress).load()
    assert (new, ear.done[0]) == (len(images) - 32, 32)
    assert torch.equal(again.features, whole)


@pytest.mark.usefixtures("short_shards")
@pytest.mark.parametrize("view", [0, 1])
def test_bits_do_not_depend_on_the_number_of_threads(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, view: int
) -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(ViewFeatures(backbone.image, images, tmp_path / str(number), view=view).load()[0].features)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@given(sizes=st.lists(st.integers(0, 3), max_size=30), threads=st.integers(1, 4), fails=st.integers(0, 40))
def test_each_batch_comes_in_order_and_few_are_ahead(sizes: list[int], threads: int, fails: int) -> None:
    batches = [range(i, i + size) for i, size in enumerate(sizes)]
    begun: list[range] = []

    def work(batch: range) -> tuple[range, int]:
        begun.append(batch)
        os.sched_yield()
        if batch.start == fails:
            raise ValueError(f"batch {fails}")
        return batch, torch.get_num_threads()

    before = torch.get_num_threads()
    found = []
    try:
        for done in in_threads(work, batches, threads):
            found.append(done)
            assert len(begun) <= len(found) + AHEAD * threads
    except ValueError as error:
        assert str(error) == f"batch {len(found)}" == f"batch {fails}"
    else:
        assert len(found) == len(batches) <= fails
    finally:
        assert torch.get_num_threads() == before
    assert found == [(batch, 1) for batch in batches[: len(found)]]


@pytest.mark.usefixtures("short_shards")
def test_damaged_shard_is_made_again(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    whole = encoded(backbone, images, tmp_path / "whole").features
    with pytest.raises(KeyboardInterrupt):
        encoded(backbone, images, tmp_path / "cut", Ear(stop_at=48))
    (shards,) = (tmp_path / "cut").glob("*.shards")
    first = min(shards.iterdir())
    first.write_bytes(first.read_bytes()[:-4])
    again, new = ViewFeatures(backbone.image, images, tmp_path / "cut").load()
    assert new == len(images) - 48 + 16
    assert torch.equal(again.features, whole)


@pytest.mark.usefixtures("short_shards")
@pytest.mark.parametrize("writing", [1, 3, 5])
def test_full_disk_leaves_no_half_file_and_loses_nothing(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: int
) -> None:
    calls = iter(range(1, 100))

    def full(tensors: object, file: Path, metadata: object) -> None:
        if next(calls) == writing:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, file, metadata)

    assert -(-len(images) // 16) == 4  # number of shards; the fifth file has all features
    monkeypatch.setattr(feature_cache, "save_file", full)
    with raises(OutputError, where=str(tmp_path), problem="No space left on device", remedy="--cache-dir"):
        encoded(backbone, images, tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == list(tmp_path.glob("*.writing")) == []
    assert count(backbone, images, tmp_path) == max(0, len(images) - 16 * (writing - 1))


def test_a_complete_cache_that_is_read_only_is_used(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    expected = encoded(backbone, images, tmp_path)
    for name in ("os.utime", "tempfile.TemporaryDirectory", "fedpgp.data.cache.save_file", "filelock.FileLock.acquire"):
        monkeypatch.setattr(name, read_only)
    feature_cache.check_cache(tmp_path)
    assert torch.equal(encoded(backbone, images, tmp_path).features, expected.features)
    with raises(OutputError, where=str(tmp_path), problem="Read-only", remedy="--cache-dir"):
        encoded(backbone, images.select(np.arange(3)), tmp_path)
    with raises(OutputError, where=str(tmp_path / "none"), remedy="--cache-dir"):
        feature_cache.check_cache(tmp_path / "none")


def test_directory_that_cannot_be_written(backbone: Backbone, images: ImageDataset) -> None:
    for attempt in (lambda at: encoded(backbone, images, at), feature_cache.check_cache):
        with raises(OutputError, where="/proc/fedpgp", remedy="--cache-dir"):
            attempt(Path("/proc/fedpgp"))


def test_undecodable_image_is_named(backbone: Backbone, images: ImageDataset, tmp_path: Path) -> None:
    bad = broken(images, _9=OSError("image file is truncated"))
    name = images.class_names[images.labels[9]]
    where = f"image 9 of the validation split of pictograms (class '{name}'"
    with raises(DataError, where=where, problem="truncated", remedy="--skip-bad-images"):
        encoded(backbone, bad, tmp_path)
    kept, _ = ViewFeatures(backbone.image, bad, tmp_path, skip_bad_images=True).load()
    assert kept.undecodable == {9: "image file is truncated"}
    again, new = ViewFeatures(backbone.image, bad, tmp_path, skip_bad_images=True).load()
    assert (again.undecodable, new) == (kept.undecodable, 0)
    with raises(DataError, where="image 9"):  # also if the cache says so
        encoded(backbone, bad, tmp_path)


def test_the_reason_has_no_address_of_an_object(pictograms: Source, backbone: Backbone, tmp_path) -> None:
    images = replace(pictograms.validation, image=lambda _: decode(b"no image"), fingerprint="none")
    with raises(DataError, where="image 0 ") as error:
        encoded(backbone, images, tmp_path)
    assert "0x" not in error.value.problem


def test_skipped_images_leave_the_source_and_the_others_keep_their_features(
    backbone: Backbone, small_source: Source, tmp_path: Path
) -> None:
    source = replace(small_source, train=broken(small_source.train, _0=ValueError("a"), _5=SyntaxError("b")))
    ear = Ear()
    splits = {dataset.fingerprint: dataset for dataset in (source.train, source.test)}
    found, bad = split_features(
        backbone.image, list(splits.values()), tmp_path, skip_bad_images=True, notice=ear.notice
    )
    kept = without(source, splits, bad)
    n = len(small_source.train)
    rest = [i for i in range(n) if i not in (0, 5)]
    assert (kept.train.labels == small_source.train.labels[rest]).all()
    assert kept.train.image(3).tobytes() == small_source.train.image(4).tobytes()
    assert kept.test is source.test
    torch.testing.assert_close(
        found[source.train.fingerprint][rest],
        encoded(backbone, small_source.train, tmp_path).features[rest],
        atol=1e-6,
        rtol=0,
    )
    (said,) = ear.said
    assert said.startswith(f"dropped 2 of {n} train images, which do not decode: image 0 of")
    assert "; image 5 of" in said


def test_images_are_found_again_only_in_selections_of_their_own_split(images: ImageDataset) -> None:
    whole, other = images.select(np.arange(1, 9)), replace(images, fingerprint="of another set with the same name")
    part = whole.select(np.array([0, 2, 5]))
    assert part_of(part, {"other": other}) is None, "its name and split say nothing"
    assert part_of(part, {"fewer": images.select(np.array([1, 3]))}) is None
    key, places = part_of(part, {"other": other, "whole": whole}) or ("", None)
    assert key == "whole" and places is not None and places.tolist() == [0, 2, 5]
    key, places = part_of(part, {"images": images}) or ("", None)
    assert key == "images" and places is not None and places.tolist() == [1, 3, 6]


def test_run_without_bad_images(small: None, small_source: Source, tmp_path: Path, monkeypatch) -> None:
    short = ["task.clients=3", "task.shots=2", "federation.rounds=1", "federation.local_epochs=1"]
    bad = replace(small_source, test=broken(small_source.test, _2=OSError("cut")))
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: bad)
    with raises(DataError, where="image 2 of the test split"):
        fedpgp.run("promptfl", changes=short, cache=tmp_path)
    result = fedpgp.run("promptfl", changes=short, cache=tmp_path, skip_bad_images=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "what was read before is not encoded once more"
    tested = int((bad.test.labels < 6).sum())
    assert result.results["task"]["images"]["base"] == tested - 1
    assert result.provenance["images"]["test"] != bad.test.fingerprint


def test_says_whether_anything_was_encoded(backbone: Backbone, small_source: Source, tmp_path: Path) -> None:
    heard = []
    for _ in range(2):
        split_features(backbone.image, [small_source.train], tmp_path, progress=lambda *report: heard.append(report))
    n = len(small_source.train)
    said = [report for report in heard if report[0] == "image features"]
    assert said == [
        ("image features", n, n, f"{n} encoded, 0 from the cache"),
        ("image features", n, n, "no image encoded: all from the cache"),
    ]
    assert any(report[3].endswith("images/s") for report in heard)


def test_views_are_of_training_images_and_more_of_them_encode_only_the_new(
    backbone: Backbone, small_source: Source, tmp_path: Path
) -> None:
    def with_views(count: int) -> tuple[dict[str, torch.Tensor], str]:
        heard: list[str] = []
        splits = {"train": small_source.train, "test": small_source.test}
        found, _ = split_features(
            backbone.image, list(splits.values()), tmp_path, augmented_views=count,
            progress=lambda *report: heard.append(report[3]),
        )  # fmt: skip
        return {name: found[split.fingerprint] for name, split in splits.items()}, heard[-1]

    n, t = len(small_source.train), len(small_source.test)
    two, _ = with_views(2)
    three, said = with_views(3)
    one, _ = with_views(1)
    assert (two["train"].shape, three["train"].shape) == ((n, 2, 128), (n, 3, 128))
    assert one["train"].shape == (n, 128)
    assert said == f"{n} encoded, {2 * n + t} from the cache"
    assert torch.equal(three["train"][:, :2], two["train"])
    assert torch.equal(two["test"], one["test"])
    lengths = three["train"].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert (three["train"][:, 0] - three["train"][:, 1]).norm(dim=-1).min() > 1e-3


def test_feature_that_is_not_finite_stops_the_encoding(
    backbone: Backbone, images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(encoder: object, pixels: torch.Tensor, kind: str) -> torch.Tensor:
        found = torch.ones(len(pixels), 128)
        found[3, 7] = torch.nan
        return found

    monkeypatch.setattr(type(backbone.image), "encode", encode)
    with raises(CheckpointError, where="image 3 of the validation split", remedy="backbone.precision=float32"):
        encoded(backbone, images, tmp_path)


def test_datasets_can_be_pickled(pictograms: Source) -> None:
    part = pictograms.validation.select(pictograms.validation.of_classes([3, 60]))
    again = pickle.loads(pickle.dumps(part))
    assert again.image(5).tobytes() == part.image(5).tobytes()
    assert (again.labels == part.labels).all()
    assert set(part.labels) == {3, 60}
    assert part.fingerprint != pictograms.validation.fingerprint


def test_a_disk_that_fails_is_not_taken_for_a_bad_image(
    backbone: Backbone, images: ImageDataset, tmp_path: Path
) -> None:
    """--skip-bad-images keeps an image that a later attempt may read, and the cache does not store the error."""
    failing = broken(images, _9=OSError(errno.EIO, "Input/output error"))
    with raises(DataError, where="image 9 ", problem="Input/output error"):
        ViewFeatures(backbone.image, failing, tmp_path, skip_bad_images=True).load()
    kept, _ = ViewFeatures(backbone.image, images, tmp_path).load()
    assert not kept.undecodable


@dataclass(frozen=True)
class SecondTimeBad:
    """Pictures; one of them decodes once and never again."""

    pictures: Callable[[int], Image.Image]
    seen: list[int]

    def __call__(self, index: int) -> Image.Image:
        self.seen.append(index)
        if index == 3 and self.seen.count(3) == 2:
            raise ValueError("cut")
        return self.pictures(index)


def test_an_image_that_is_bad_in_one_view_is_dropped_from_all(
    backbone: Backbone, small_source: Source, tmp_path: Path
) -> None:
    train = small_source.train
    source = replace(small_source, train=replace(train, image=SecondTimeBad(train.image, [])))
    found, bad = split_features(backbone.image, [source.train], tmp_path, augmented_views=3, skip_bad_images=True)
    (features,) = found.values()
    assert features.shape == (len(train), 3, 128)
    kept = without(source, {source.train.fingerprint: source.train}, bad)
    assert (kept.train.labels == np.delete(train.labels, 3)).all()
    assert (features[np.delete(np.arange(len(train)), 3)].norm(dim=-1) > 0.9).all()
