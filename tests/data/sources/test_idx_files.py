"""MNIST's file format: content and unpacking."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, read_listing
from fedpgp.errors import DataError

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PER_CLASS = 4


def idx(values):
    """Return an array of bytes in the format that its page describes."""
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def grey(some_pictures):
    """[12, 28, 28]"""
    return np.stack([np.asarray(picture.convert("L").resize((28, 28))) for picture in some_pictures])


@pytest.fixture
def laid(tmp_path, grey):
    """Write a dataset, and return its directory, and pixels and labels by part."""

    def lay(folder="fashion-mnist", mark="-", packed=True, classes=10):
        parts = {}
        for number, part in enumerate(("train", "t10k")):
            labels = np.tile(np.arange(classes, dtype=np.uint8), PER_CLASS - number)
            pixels = grey[(np.arange(len(labels)) * (number + 5)) % 12]
            parts[part] = (pixels, labels)
            for kind, values in (("images", pixels), ("labels", labels)):
                file = tmp_path / folder / f"{part}-{kind}{mark}idx{values.ndim}-ubyte{'.gz' * packed}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(gzip.compress(idx(values), mtime=0) if packed else idx(values))
        return tmp_path / folder, parts

    return lay


@pytest.mark.parametrize(
    ("name", "folder", "mark", "packed"),
    [
        ("fashion-mnist", "fashion-mnist", "-", True),
        ("fashion-mnist", "FashionMNIST/raw", "-", False),
        ("mnist", "MNIST/raw", "-", True),
        ("mnist", "mnist", ".", False),
        ("kmnist", "kmnist", "-", True),
    ],
)
def test_pixels_and_labels_are_those_of_the_files(laid, tmp_path, name, folder, mark, packed):
    directory, parts = laid(folder, mark, packed)
    found = read_listing(DataConfig(source=name, root=str(tmp_path)))
    assert found.name == name
    assert layout_of(directory) == "idx"
    assert found.labels.tolist() == [*parts["train"][1], *parts["t10k"][1]]
    assert found.splits.tolist() == [0] * 40 + [2] * 30
    pictures = pickle.loads(pickle.dumps(found.pictures))
    for index, pixels in enumerate([*parts["train"][0], *parts["t10k"][0]]):
        picture = pictures(index)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), np.repeat(pixels[:, :, None], 3, axis=2))
    assert "number 41 in" in pictures.place(41)


def test_names_and_template(laid, tmp_path):
    laid()
    source = load_source(DataConfig(source="fashion-mnist", root=str(tmp_path)))
    assert ", ".join(source.class_names) == (
        "t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
    )
    assert source.templates == ("a photo of a {}.",)
    assert len(source.validation) == 10
    assert len(source.test) == 30


def test_an_unknown_dataset_needs_names(laid):
    directory, _ = laid("letters", classes=3)
    with raises(DataError, where=str(directory), problem="integers", remedy="classes.txt"):
        read_listing(DataConfig(source=str(directory)))
    (directory / "classes.txt").write_text("a\nb\nc\n")
    assert read_listing(DataConfig(source=str(directory))).class_names == ("a", "b", "c")


def test_files_are_unpacked_once_and_again_when_they_change(laid, user_cache, grey):
    directory, _ = laid()
    first = read_listing(DataConfig(source=str(directory)))
    (unpacked,) = (user_cache / "unpacked").iterdir()
    state = unpacked.stat()
    (user_cache / "new").touch()
    assert state.st_mode == (user_cache / "new").stat().st_mode
    again = read_listing(DataConfig(source=str(directory)))
    assert (unpacked.stat().st_ino, unpacked.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    images = np.arange(70)
    assert again.pictures.fingerprint(images) == first.pictures.fingerprint(images)
    assert again.pictures.fingerprint(images[::-1]) != first.pictures.fingerprint(images)

    file = directory / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx(grey[np.arange(30) % 5]), mtime=0))
    changed = read_listing(DataConfig(source=str(directory))).pictures
    assert changed.fingerprint(images) != first.pictures.fingerprint(images)
    assert changed.fingerprint(images[:40]) == first.pictures.fingerprint(images[:40])

    unpacked.write_bytes(unpacked.read_bytes()[:-1])  # the state after a full disk
    directory, _ = laid()
    assert read_listing(DataConfig(source=str(directory))).pictures.fingerprint(images)


def test_a_cache_that_cannot_be_written(laid, user_cache):
    directory, _ = laid()
    user_cache.write_text("a file")
    with raises(DataError, where=str(user_cache), problem="train-images-idx3-ubyte.gz", remedy="XDG_CACHE_HOME"):
        read_listing(DataConfig(source=str(directory)))


def ended(content):
    return content[:-1]


@pytest.mark.parametrize(
    ("name", "change", "fields"),
    [
        ("train-images-idx3-ubyte", ended, {"allowed": "40 images", "got": 31_375}),
        ("t10k-images-idx3-ubyte", lambda content: content + b"\0", {"allowed": "30 images", "got": "more"}),
        ("t10k-images-idx3-ubyte", lambda content: b"\0\0\x0d" + content[3:], {"problem": "idx file of images"}),
        ("t10k-images-idx3-ubyte", lambda content: content[:7], {"problem": "idx file of images"}),
        ("train-labels-idx1-ubyte", ended, {"allowed": "48 bytes for the 40 labels", "got": 47}),
        ("train-labels-idx1-ubyte", lambda _: idx(np.zeros(39, np.uint8)), {"problem": "39 labels"}),
        ("train-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0b", {"allowed": "0 to 9", "got": 11}),
        ("t10k-images-idx3-ubyte", lambda _: idx(np.zeros((30, 5, 5), np.uint8)), {"problem": "size [5, 5]"}),
        ("t10k-labels-idx1-ubyte", None, {"problem": "t10k-labels-idx1-ubyte"}),
    ],
)
def test_damaged_files_are_refused_and_leave_nothing_behind(laid, user_cache, name, change, fields):
    directory, _ = laid(packed=False)
    file = directory / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    where = str(directory) if change is None or fields.get("got") == 11 else str(file)
    with raises(DataError, where=where, **fields):
        read_listing(DataConfig(source=str(directory)))
    assert not list(user_cache.rglob("*.*"))


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize(
    "change", [lambda content: content[:-20], lambda _: b"no gzip", lambda c: c[:30] + b"xx" + c[32:]]
)
def test_damaged_gzip(laid, name, change):
    directory, _ = laid()
    file = directory / name
    file.write_bytes(change(file.read_bytes()))
    with raises(DataError, where=name):
        read_listing(DataConfig(source=str(directory)))


@pytest.mark.skipif(
    not INSTALLED.is_dir(), reason="the original Fashion-MNIST is not installed (dataset-fashion-mnist)"
)
def test_the_original_files(tmp_path):
    source = load_source(DataConfig(source="fashion-mnist", root=str(tmp_path)))
    assert (len(source.train), len(source.validation), len(source.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(source.test.labels).tolist() == [1000] * 10
    assert source.class_names[source.test.labels[0]] == "ankle boot"
    with gzip.open(INSTALLED / "t10k-images-idx3-ubyte.gz") as file:
        content = file.read()[16:]
    for index in (0, 1, 9_999):
        grey = np.asarray(source.test.image(index))[:, :, 0].tobytes()
        assert hashlib.sha256(grey).digest() == hashlib.sha256(content[index * 784 : (index + 1) * 784]).digest()
