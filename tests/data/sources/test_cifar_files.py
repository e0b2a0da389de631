"""CIFAR's pickles: their content; no code in them is run."""

import gzip
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import tracemalloc
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import cifar, layout_of, load_source, read_listing, unpickle
from fedpgp.errors import DataError

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"thing_{letter}" for letter in "zyxwvutsrq"]
COARSE = [3, 1, 4, 1, 0, 2, 2, 0, 4, 3]


class Python2Pickler(pickle._Pickler):
    """Write texts and bytes as Python 2 wrote its str, as in the official files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_str


def python2(value):
    written = io.BytesIO()
    Python2Pickler(written, protocol=2).dump(value)
    return written.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3(value):
    return pickle.dumps(value, protocol=4)


@pytest.fixture
def colours(some_pictures):
    """[12, 32, 32, 3]"""
    return np.stack([np.asarray(picture) for picture in some_pictures])


def rows_of(colours, count, step):
    """[count, 3072] in CIFAR's order, pixel by pixel."""
    rows = np.zeros((count, 3072), np.uint8)
    for row in range(count):
        for colour in range(3):
            rows[row, colour * 1024 : (colour + 1) * 1024] = colours[row * step % 12, :, :, colour].ravel()
    return rows


@pytest.fixture
def ten(tmp_path, colours):
    """CIFAR-10 with two images of each class in each file."""

    def lay(write=python2):
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            content = {
                "batch_label": name,
                "labels": [(label + number) % 10 for label in [*range(10)] * 2],
                "data": rows_of(colours, 20, number + 1),
                "filenames": [f"{i}.png" for i in range(20)],
            }
            (folder / name).write_bytes(write(content))
        meta = {"num_cases_per_batch": 20, "label_names": TEN, "num_vis": 3072}
        (folder / "batches.meta").write_bytes(write(meta))
        (folder / "readme.html").write_text("")
        return folder

    return lay


@pytest.fixture
def hundred(tmp_path, colours):
    """Write CIFAR-100 with ten classes; `wrong`: the index of a superclass that is changed."""

    def lay(wrong=None):
        folder = tmp_path / "cifar-100-python"
        folder.mkdir(exist_ok=True)
        for name, count in (("train", 40), ("test", 20)):
            fine = [i % 10 for i in range(count)]
            coarse = [COARSE[label] for label in fine]
            if wrong is not None and name == "test":
                coarse[wrong] += 1
            content = {
                "fine_labels": fine,
                "coarse_labels": coarse,
                "data": rows_of(colours, count, 5),
                "filenames": [],
            }
            (folder / name).write_bytes(python2(content))
        names = {"fine_label_names": FINE, "coarse_label_names": [*"abcde"]}
        (folder / "meta").write_bytes(python2(names))
        return folder

    return lay


def archived(folder, name):
    with tarfile.open(folder.parent / name, "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    return folder.parent / name


@pytest.mark.parametrize("write", [python2, python3])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(ten, tmp_path, colours, write, packed):
    place = ten(write)
    if packed:
        place = archived(place, "cifar-10-python.tar.gz")
    assert layout_of(place) == layout_of(tmp_path) == "cifar"
    source = load_source(DataConfig(source="cifar10", root=str(tmp_path)))
    assert (source.name, list(source.class_names), source.superclasses) == ("cifar10", TEN, None)
    assert (len(source.train), len(source.validation), len(source.test)) == (90, 10, 20)
    found = read_listing(DataConfig(source="cifar10", root=str(tmp_path)))
    assert found.splits.tolist() == [0] * 100 + [2] * 20
    for index in range(120):
        number, row = divmod(index, 20)
        assert np.array_equal(np.asarray(found.pictures(index)), colours[row * (number + 1) % 12])
        assert found.labels[index] == (row + number) % 10


def test_folder_and_archive_have_the_same_fingerprint(ten, tmp_path):
    folder = ten()
    first = load_source(DataConfig(source="cifar10", root=str(tmp_path)))
    archived(folder, "cifar-10-python.tar.gz")
    assert load_source(DataConfig(source="cifar10", root=str(tmp_path))).test.fingerprint == first.test.fingerprint
    assert first.test.fingerprint != first.train.fingerprint


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_has_fine_names_and_superclasses(hundred, tmp_path, packed):
    place = hundred()
    if packed:
        archived(place, "cifar-100-python.tar.gz")
    source = load_source(DataConfig(source="cifar100", root=str(tmp_path)))
    assert (list(source.class_names), list(source.superclasses)) == (FINE, COARSE)


def test_a_class_in_two_superclasses(hundred, tmp_path):
    hundred(wrong=3)
    with raises(DataError, where="cifar-100-python", problem="'thing_w'"):
        read_listing(DataConfig(source="cifar100", root=str(tmp_path)))


class Shell:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Code:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('ran').touch()",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("make", [lambda: Shell("touch ran"), Code])
def test_a_malicious_pickle_runs_nothing(ten, tmp_path, monkeypatch, make, protocol):
    monkeypatch.chdir(tmp_path)
    folder = ten()
    content = pickle.dumps({"data": make()}, protocol=protocol)
    (folder / "data_batch_3").write_bytes(content)
    with raises(DataError, where="data_batch_3") as error:
        read_listing(DataConfig(source="cifar10", root=str(tmp_path)))
    assert re.search(r"names \w+\.\w+", error.value.problem)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # the code runs if the pickle is loaded as usual


@pytest.mark.parametrize(
    "value",
    [
        np.array([print], dtype=object),
        np.zeros(3),
        np.zeros(3, dtype=[("a", "u1")]),
        np.float64(1),
        {1, 2}.__class__,
        range(3),
        np.random.default_rng(0),
    ],
)
def test_other_values_than_arrays_of_bytes_are_refused(value):
    with pytest.raises(pickle.UnpicklingError):
        unpickle.load(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize(
    "name", ["numpy.core.multiarray\n_reconstruct.__globals__", "numpy\nndarray.tofile", "numpy\nload"]
)
def test_names_within_names_are_refused(name):
    with pytest.raises(pickle.UnpicklingError):
        unpickle.load(b"\x80\x04c" + name.encode() + b"\n.")


def test_arrays_are_what_they_were():
    values = np.arange(60, dtype=np.uint8).reshape(3, 20)
    for write in (python2, python3):
        loaded = unpickle.load(write({"data": values, "more": [1, 2.5, None, ("x",)]}))
        assert np.array_equal(loaded["data"], values)
        assert loaded["more"] == [1, 2.5, None, ("x",)]


def fields(**changes):
    content = {"labels": [0] * 20, "data": np.zeros((20, 3072), np.uint8)}
    return lambda _: python2({**content, **changes})


@pytest.mark.parametrize(
    ("change", "where", "allowed"),
    [
        (lambda content: content[:100], "data_batch_2", ""),
        (lambda _: b"", "data_batch_2", ""),
        (lambda _: python2([1]), "data_batch_2", "a dict"),
        (fields(data=np.zeros((20, 3071), np.uint8)), "data_batch_2: data", "3072 bytes"),
        (fields(data="x"), "data_batch_2: data", "3072 bytes"),
        (fields(labels=[0] * 19), "data_batch_2: labels", "20 numbers from 0 to 9"),
        (fields(labels=[0] * 19 + [10]), "data_batch_2: labels", "20 numbers from 0 to 9"),
        (fields(labels=[0] * 19 + [True]), "data_batch_2: labels", "20 numbers from 0 to 9"),
        (None, "cifar-10-batches-py", ""),
    ],
)
def test_damaged_files(ten, tmp_path, user_cache, change, where, allowed):
    file = ten() / "data_batch_2"
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    with raises(DataError, where=where, allowed=allowed):
        read_listing(DataConfig(source="cifar10", root=str(tmp_path)))
    assert not user_cache.exists()


def test_damaged_archives(ten, tmp_path):
    folder = ten()
    (folder / "data_batch_4").unlink()
    archive = archived(folder, "cifar-10-python.tar.gz")
    with raises(DataError, where=str(archive), problem="data_batch_4"):
        read_listing(DataConfig(source=str(archive)))
    archive.write_bytes(archive.read_bytes()[:-500])
    with raises(DataError, where=str(archive)):
        read_listing(DataConfig(source=str(archive)))
    archive.write_bytes(b"none")
    with raises(DataError, where=str(archive)):
        read_listing(DataConfig(source=str(archive)))


def test_pictures_are_not_held(ten, tmp_path):
    ten()
    read_listing(DataConfig(source="cifar10", root=str(tmp_path)))
    tracemalloc.start()
    found = read_listing(DataConfig(source="cifar10", root=str(tmp_path)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 120 * 3072 / 2
    assert len(pickle.dumps(found.pictures)) < 120 * 3072 / 2


# Operations of a pickle: GLOBAL, BUILD and others, written by hand.
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


def of_data(value):
    """A pickle of {"data": a value}, with the operations of the value."""
    return b"\x80\x02}U\x04data" + value + b"s."


def test_a_state_that_crashed_the_interpreter_does_not_reach_numpy():
    state = pickle.dumps((2, "i", None, ("data",), 5, -1), protocol=2)[2:-1]
    with pytest.raises(pickle.UnpicklingError, match="state"):
        unpickle.load(of_data(DTYPE + state + b"b"))


@pytest.mark.parametrize(
    "state",
    [
        (1, (-1,), b""),
        (1, (2**62, 2**62), b""),
        (1, (3,), b"ab"),
        (1, (3,), 5),
        (1, "x", b"abc"),
        (1, (1.0,), b"a"),
        (1, (0,) * 70, b""),
    ],
)
def test_a_false_state_of_an_array_is_refused(state):
    version, shape, data = state
    fields = (pickle.dumps(part, protocol=3)[2:-1] for part in (version, shape, data))
    first, second, last = fields
    content = of_data(ARRAY + b"(" + first + second + DTYPE + b"\x89" + last + b"tb")
    with pytest.raises(pickle.UnpicklingError):
        unpickle.load(content)


@pytest.mark.parametrize(
    "content",
    [
        of_data(b"Nr\xff\xff\xff\x07"),  # LONG_BINPUT: the number of a value was the length of a table
        b"\x80\x05\x96" + (2**30).to_bytes(8, "little") + b".",  # BYTEARRAY8: its size was taken before its bytes
    ],
)
def test_a_few_bytes_take_no_memory(content):
    tracemalloc.start()
    with suppress(ValueError, pickle.UnpicklingError):
        unpickle.load(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_a_list_of_lists_is_not_printed(ten, tmp_path):
    """Thirty lists, each with the list before it twice, are small, but their text has a thousand million brackets."""
    names = ["x"]
    for _ in range(30):
        names = [names, names]
    (ten() / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with raises(DataError, where="label_names", allowed="a list of names", got="list"):
        read_listing(DataConfig(source="cifar10", root=str(tmp_path)))


def test_a_header_of_an_archive_cannot_take_memory(tmp_path, monkeypatch):
    """A name of a gigabyte is a megabyte in the archive."""
    monkeypatch.setattr(cifar, "LARGEST", 1 << 16)
    name = tarfile.TarInfo("long")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 24
    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb", compresslevel=1) as packed:
        packed.write(name.tobuf() + b"a" * (name.size + 1024))
    tracemalloc.start()
    with raises(DataError, where="cifar-10-python.tar.gz", problem="more than 65,536 bytes"):
        read_listing(DataConfig(source=str(tmp_path / "cifar-10-python.tar.gz")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 21


@pytest.mark.parametrize("packed", [False, True])
def test_a_dataset_larger_than_the_limits_is_refused(packed, ten, tmp_path, monkeypatch):
    place = ten()
    if packed:
        place = archived(place, "cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE" if packed else "LARGEST", 1 << 15)
    with raises(DataError, where=place.name) as error:
        read_listing(DataConfig(source=str(place)))
    assert "32,768 bytes" in str(error.value)


def test_a_pickle_with_too_many_operations_is_refused(monkeypatch):
    monkeypatch.setattr("fedpgp.runtime.unpickle.OPERATIONS", 100)
    with pytest.raises(pickle.UnpicklingError, match="100 operations"):
        unpickle.load(b"N" * 200 + b".")
