"""CoOp's split files: what is read from them, and what stops a run before any work."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from disk import file_of

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, read_listing
from fedpgp.data.sources.known import KNOWN, NAMES, find
from fedpgp.errors import DataError

PLACES = {  # name -> directory, images, stem; laid beside CoOp's DATASETS.md
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
CLASSES = ("zebra_fish", "ant", "mule")  # the labels have an order that sorting would not give
ENTRIES = {
    split: [[f"{name}/{split}{i}.jpg", label, name] for i in range(3) for label, name in enumerate(CLASSES)]
    for split in ("train", "val", "test")
}


@pytest.fixture
def laid(put, tmp_path):
    """Lays out a data set as CoOp does, and gives the split file."""

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


def changed(entry):
    return {**ENTRIES, "val": [*ENTRIES["val"], entry]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "lists train, val and test"),
        ({"train": []}, "lists train, val and test"),
        ({"train": [], "val": [], "test": []}, "names no image"),
        (changed(["a.jpg", 0]), r"val\.9\.2: .*\[path, label from 0, class name\], got"),
        (changed(["a.jpg", "0", "ant"]), r"val\.9\.1: .*\[path, label from 0, class name\], got 0"),
        (changed(["a.jpg", True, "ant"]), r"val\.9\.1: .*\[path, label from 0, class name\], got True"),
        (changed(["a.jpg", -1, "ant"]), r"val\.9\.1: .*\[path, label from 0, class name\], got -1"),
        (changed(["../a.jpg", 1, "ant"]), r"entry 9 of val: .* below the images, got '\.\./a\.jpg'"),
        (changed(["/etc/a.jpg", 1, "ant"]), "must be relative"),
        (changed(["C:\\a.jpg", 1, "ant"]), "must be relative"),
        (changed(["ant\\..\\a.jpg", 1, "ant"]), "must be relative"),
        (changed(["ant/train0.jpg", 1, "bee"]), "label 1 is named 'bee', and before 'ant'"),
        (changed(["ant/train0.jpg", 9, "bee"]), r"must be 0 to 3, and 3 is missing"),
        (changed(["ant/train0.jpg", 3, "ANT"]), "'ant' and 'ANT' are the same name"),
        (changed(["ant/gone.jpg", 1, "ant"]), r"1 of 10 image files are missing.*gone\.jpg.*split_zhou_OxfordPets"),
    ],
)
def test_what_is_wrong_is_told(laid, tmp_path, entries, message):
    laid(entries=entries)
    with pytest.raises(DataError, match=message):
        load_source(DataConfig(source="oxford_pets", root=str(tmp_path)))


def test_images_that_lie_nowhere(laid, tmp_path):
    laid(images="photos")
    with pytest.raises(DataError, match=r"first image zebra_fish/train0\.jpg is missing in .*images, "):
        load_source(DataConfig(source="oxford_pets", root=str(tmp_path)))


def test_two_files_in_a_directory(laid):
    file = laid()
    (file.parent / "split_zhou_Other.json").write_text("{}")
    with pytest.raises(DataError, match="holds 2 split files"):
        read_listing(DataConfig(source=str(file.parent)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_is_told_with_its_places_and_page(tmp_path, name, monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)  # a real copy may be installed
    with pytest.raises(DataError, match=rf"{name} is not in data.root: looked at .*{KNOWN[name].places[0]}.*https?://"):
        find(name, tmp_path)


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
