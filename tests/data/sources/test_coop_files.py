"""CoOp's split files: their content, and faults that stop a run before any work."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from disk import file_of
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, read_listing
from fedpgp.data.sources.known import KNOWN, NAMES, find
from fedpgp.errors import DataError

PLACES = {  # name -> directory, images, stem; compared with CoOp's DATASETS.md
    "caltech101": ("caltech-101", "101_ObjectCategories", "Caltech101"),
    "oxford_pets": ("oxford_pets", "images", "OxfordPets"),
    "oxford_flowers": ("oxford_flowers", "jpg", "OxfordFlowers"),
    "dtd": ("dtd", "images", "DescribableTextures"),
    "food101": ("food-101", "images", "Food101"),
    "eurosat": ("eurosat", "2750", "EuroSAT"),
    "ucf101": ("ucf101", "UCF-101-midframes", "UCF101"),
    "stanford_cars": ("stanford_cars", ".", "StanfordCars"),
    "sun397": ("sun397", "SUN397", "SUN397"),
}
CLASSES = ("zebra_fish", "ant", "mule")  # the labels are not in sorted order
ENTRIES = {
    split: [[f"{name}/{split}{i}.jpg", label, name] for i in range(3) for label, name in enumerate(CLASSES)]
    for split in ("train", "val", "test")
}


@pytest.fixture
def laid(put, tmp_path):
    """Write a dataset in CoOp's layout, and return the split file."""

    def lay(folder="oxford_pets", images="images", stem="OxfordPets", entries=ENTRIES):
        put(*(f"{folder}/{images}/{path}" for split in ENTRIES.values() for path, _, _ in split))
        file = tmp_path / folder / f"split_zhou_{stem}.json"
        file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return file

    return lay


@pytest.mark.parametrize("name", PLACES)
def test_every_name_is_read_from_where_coop_has_it(laid, tmp_path, name):
    file = laid(*PLACES[name])
    source = load_source(DataConfig(source=name, root=str(tmp_path)))
    assert (source.name, source.class_names) == (name, CLASSES)
    assert source.templates[0].count("{}") == 1
    for dataset, split in ((source.train, "train"), (source.validation, "val"), (source.test, "test")):
        assert dataset.labels.tolist() == [label for _, label, _ in ENTRIES[split]]
        for index, (path, _, _) in enumerate(ENTRIES[split]):
            assert file_of(dataset, index).resolve() == (file.parent / PLACES[name][1] / path).resolve()
    assert pickle.loads(pickle.dumps(source.test.image))(4).size == (32, 32)


def test_templates_are_those_of_coop():
    assert {name: known.template for name, known in KNOWN.items() if known.layout == "coop"} == {
        "caltech101": "a photo of a {}.",
        "oxford_pets": "a photo of a {}, a type of pet.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "dtd": "{} texture.",
        "food101": "a photo of {}, a type of food.",
        "eurosat": "a centered satellite photo of {}.",
        "ucf101": "a photo of a person doing {}.",
        "stanford_cars": "a photo of a {}.",
        "sun397": "a photo of a {}.",
    }


@pytest.mark.parametrize("images", [".", "images"])
def test_a_file_that_is_not_known_is_read_where_it_lies(laid, images):
    file = laid("mine", images, "Mine")
    assert layout_of(file) == layout_of(file.parent) == "coop"
    by_file, by_directory = (read_listing(DataConfig(source=str(path))) for path in (file, file.parent))
    assert by_file.name == "mine"
    assert by_file.class_names == by_directory.class_names == CLASSES
    assert by_file.templates == ("a photo of a {}.",)
    assert by_file.pictures.fingerprint(np.arange(9)) == by_directory.pictures.fingerprint(np.arange(9))


def test_names_can_be_given(laid, tmp_path):
    laid()
    (tmp_path / "names.txt").write_text("fish\nemmet\nhinny\n")
    found = read_listing(DataConfig(source="oxford_pets", root=str(tmp_path), names=str(tmp_path / "names.txt")))
    assert found.class_names == ("fish", "emmet", "hinny")


FILE, ENTRY = "split_zhou_OxfordPets.json", "[path, label from 0, class name]"


def changed(entry):
    return {**ENTRIES, "val": [*ENTRIES["val"], entry]}


@pytest.mark.parametrize(
    ("entries", "where", "fields"),
    [
        ("{", FILE, {"allowed": "JSON"}),
        ("[" * 100_000, FILE, {"allowed": "JSON"}),
        ("[]", FILE, {"allowed": "train, val and test", "got": "[]"}),
        ({"train": []}, f"{FILE}: val", {"allowed": "train, val and test"}),
        ({"train": [], "val": [], "test": []}, FILE, {"problem": "no image"}),
        (changed(["a.jpg", 0]), "val.9.2", {"allowed": ENTRY}),
        (changed(["a.jpg", "0", "ant"]), "val.9.1", {"allowed": ENTRY, "got": "0"}),
        (changed(["a.jpg", True, "ant"]), "val.9.1", {"allowed": ENTRY, "got": "True"}),
        (changed(["a.jpg", -1, "ant"]), "val.9.1", {"allowed": ENTRY, "got": "-1"}),
        (changed(["../a.jpg", 1, "ant"]), f"{FILE}, entry 9 of val", {"allowed": "relative", "got": "../a.jpg"}),
        (changed(["/etc/a.jpg", 1, "ant"]), FILE, {"allowed": "relative", "got": "/etc/a.jpg"}),
        (changed(["C:\\a.jpg", 1, "ant"]), FILE, {"allowed": "relative", "got": "C:\\a.jpg"}),
        (changed(["ant\\..\\a.jpg", 1, "ant"]), FILE, {"allowed": "relative", "got": "ant\\..\\a.jpg"}),
        (changed(["ant/train0.jpg", 1, "bee"]), f"{FILE}, entry 9 of val", {"problem": "label 1 has the name 'bee'"}),
        (changed(["ant/train0.jpg", 9, "bee"]), FILE, {"problem": "label 3"}),
        (changed(["ant/train0.jpg", 3, "ANT"]), FILE, {"problem": "'ant' and 'ANT'", "remedy": "data.names"}),
        (changed(["ant/gone.jpg", 1, "ant"]), "gone.jpg", {"problem": "1 of 10", "remedy": FILE}),
    ],
)
def test_damaged_files_are_refused(laid, tmp_path, entries, where, fields):
    laid(entries=entries)
    with raises(DataError, where=where, **fields):
        load_source(DataConfig(source="oxford_pets", root=str(tmp_path)))


def test_missing_images(laid, tmp_path):
    laid(images="photos")
    with raises(DataError, where=FILE, problem="zebra_fish/train0.jpg"):
        load_source(DataConfig(source="oxford_pets", root=str(tmp_path)))


def test_two_files_in_a_directory(laid):
    file = laid()
    (file.parent / "split_zhou_Other.json").write_text("{}")
    with raises(DataError, where=str(file.parent), problem="2", remedy="`fedpgp data get caltech101`"):
        read_listing(DataConfig(source=str(file.parent)))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_dataset_is_reported_with_its_places_and_page(tmp_path, name, monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)  # a real copy may be installed
    with raises(DataError, where="data.source", problem=KNOWN[name].places[0], remedy=KNOWN[name].page) as error:
        find(name, tmp_path)
    assert error.value.problem.startswith(f"{name} ")


@pytest.mark.slow
def test_order_of_classes_does_not_depend_on_hashes(laid, tmp_path):
    laid()
    program = (
        "import sys; from fedpgp.config import DataConfig; from fedpgp.data.sources import read_listing;"
        "found = read_listing(DataConfig(source='oxford_pets', root=sys.argv[1]));"
        "print(found.class_names, found.labels.tolist())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
