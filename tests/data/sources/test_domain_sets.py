"""Datasets with several domains."""

import pickle

import numpy as np
import pytest
from disk import file_of
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, read_listing
from fedpgp.errors import DataError

CLASSES = {
    "office_caltech10": (
        [
            "back_pack",
            "bike",
            "calculator",
            "headphones",
            "keyboard",
            "laptop_computer",
            "monitor",
            "mouse",
            "mug",
            "projector",
        ]
    ),
    "pacs": ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"],
    "office_home": [f"Class_{number:02d}" for number in range(65)],
    "vlcs": ["bird", "car", "chair", "dog", "person"],
}
DOMAINS = {
    "office_caltech10": ["amazon", "caltech", "dslr", "webcam"],
    "pacs": ["art_painting", "cartoon", "photo", "sketch"],
    "office_home": ["Art", "Clipart", "Product", "Real World"],
    "vlcs": ["Caltech101", "LabelMe", "SUN09", "VOC2007"],
}
NET = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
TEN = ["bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra"]
NET_CLASSES = sorted(["aircraft_carrier", "The_Eiffel_Tower", *TEN, "yoga", "zigzag"], key=str.casefold)


@pytest.fixture
def folders(put):
    def lay(name):
        return put(
            *(f"{name}/{domain}/{one}/{i}.jpg" for domain in DOMAINS[name] for one in CLASSES[name] for i in (1, 2))
        )

    return lay


@pytest.mark.parametrize("name", DOMAINS)
def test_domains_in_folders(folders, name):
    root = folders(name)
    assert layout_of(root / name) == name
    source = load_source(DataConfig(source=name, root=str(root)))
    assert (source.name, list(source.class_names)) == (name, sorted(CLASSES[name]))
    assert list(source.train.domain_names) == DOMAINS[name]
    for dataset in (source.train, source.test):
        for index in range(0, len(dataset), 7):
            file = file_of(dataset, index)
            assert file.parent.name == source.class_names[dataset.labels[index]]
            assert file.parent.parent.name == dataset.domain_names[dataset.domains[index]]


def test_another_spelling_of_a_domain(put):
    spelled = ("art", "Clipart", "product", "RealWorld")
    root = put(*(f"mine/{domain}/{one}/1.jpg" for domain in spelled for one in ("Bed", "Fan")))
    assert read_listing(DataConfig(source=str(root / "mine"))).name == "office_home"


def test_domains_that_do_not_fit(folders, put):
    root = folders("pacs")
    (root / "pacs/photo/dog/1.jpg").unlink(), (root / "pacs/photo/dog/2.jpg").unlink()
    with raises(DataError, where="pacs", problem="domain 'photo' has no image of class 'dog'"):
        read_listing(DataConfig(source="pacs", root=str(root)))
    put("pacs/extra/dog/1.jpg")
    with raises(DataError, where="pacs: the domains", allowed="art_painting, cartoon, photo, sketch") as error:
        read_listing(DataConfig(source="pacs", root=str(root)))
    assert "extra" in error.value.got


@pytest.fixture
def net(put, tmp_path):
    """Write DomainNet with one or two images of a class in each list; return its directory and rows by list."""

    def lay(splits=""):
        rows = {
            (domain, part): [
                (f"{domain}/{name}/{domain}_{label:03d}_{part}{i}.jpg", label)
                for label, name in enumerate(NET_CLASSES)
                for i in range(2 if part == "train" else 1)
            ]
            for domain in NET
            for part in ("train", "test")
        }
        put(*(f"domainnet/{path}" for some in rows.values() for path, _ in some))
        directory = tmp_path / "domainnet" / splits
        directory.mkdir(exist_ok=True)
        for (domain, part), some in rows.items():
            text = "".join(f"{path} {label}\n" for path, label in some)
            (directory / f"{domain}_{part}.txt").write_text(text)
        return directory, rows

    return lay


@pytest.mark.parametrize("splits", ["", "splits"])
@pytest.mark.parametrize(("name", "classes"), [("domainnet", NET_CLASSES), ("domainnet10", TEN)])
def test_lists_of_domainnet(net, tmp_path, splits, name, classes):
    _, rows = net(splits)
    assert layout_of(tmp_path / "domainnet") == "domainnet"
    found = read_listing(DataConfig(source=name, root=str(tmp_path)))
    assert (found.name, list(found.class_names), list(found.domain_names)) == (name, classes, NET)
    expected = {
        (path, NET_CLASSES[label], domain, 0 if part == "train" else 2)
        for (domain, part), some in rows.items()
        for path, label in some
        if NET_CLASSES[label] in classes
    }
    pictures = pickle.loads(pickle.dumps(found.pictures))
    read = {
        (
            str(pictures.file(index).relative_to(tmp_path / "domainnet")),
            found.class_names[found.labels[index]],
            NET[found.domains[index]],
            int(found.splits[index]),
        )
        for index in range(len(found.labels))
    }
    assert read == expected
    assert len(found.labels) == len(expected)
    assert pictures(5).size == (32, 32)
    source = load_source(DataConfig(source=name, root=str(tmp_path)))
    assert np.bincount(source.test.domains).tolist() == [len(classes)] * 6


LINE = "real/CLASS/FILE and a label"


def with_line(line, place=1):
    def change(text):
        lines = text.splitlines()
        lines[place] = line
        return "\n".join(lines) + "\n"

    return change


@pytest.mark.parametrize(
    ("change", "where", "fields"),
    [
        (with_line("real/bird/1.jpg 0"), "real_train.txt:2", {"problem": "label 0 has the name 'bird'"}),
        (with_line("real/aircraft_carrier/1.jpg 1"), "real_train.txt:2", {"problem": "'aircraft_carrier'"}),
        (with_line("real/aircraft_carrier/1.jpg 77"), "real_train.txt:2", {"problem": "label 77 here, but 0"}),
        (with_line("sketch/aircraft_carrier/1.jpg 0"), "real_train.txt:2", {"allowed": LINE}),
        (with_line("real/aircraft_carrier/1.jpg"), "real_train.txt:2", {"got": "real/aircraft_carrier/1.jpg"}),
        (with_line("real/aircraft_carrier/1.jpg ²"), "real_train.txt:2", {"allowed": LINE}),
        (with_line("real/../1.jpg 0"), "real_train.txt:2", {"got": "real/../1.jpg"}),
        (with_line("real/aircraft_carrier/gone.jpg 0"), "gone.jpg", {"problem": "1 of 84"}),
        (with_line("/real/1.jpg 0"), "real_train.txt:2", {"allowed": LINE}),
        (None, "real_train.txt", {}),
    ],
)
def test_damaged_lists_are_refused(net, tmp_path, change, where, fields):
    directory, _ = net()
    file = directory / "real_train.txt"
    text = file.read_text()
    file.unlink()
    if change is not None:
        file.write_text(change(text), encoding="utf-8")
    with raises(DataError, where=where, **fields):
        load_source(DataConfig(source="domainnet", root=str(tmp_path)))


def test_lists_without_the_ten_classes(net, tmp_path):
    directory, rows = net()
    for domain, part in rows:
        file = directory / f"{domain}_{part}.txt"
        file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "/whale/" not in line))
    with raises(DataError, where=str(directory), problem="whale"):
        read_listing(DataConfig(source="domainnet10", root=str(tmp_path)))
    with raises(DataError, where=str(tmp_path), problem="clipart_train.txt"):
        read_listing(DataConfig(source=str(tmp_path), layout="domainnet"))
