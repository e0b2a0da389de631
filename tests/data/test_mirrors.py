"""Datasets from a mirror: the known name reads the saved files, and no dataset is incomplete."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
from raising import raises

from fedpgp.data import mirrors
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source
from fedpgp.data.sources.known import KNOWN
from fedpgp.errors import DataError

NUMBERS = [str(number) for number in range(10)]
NAMES = {
    "cifar10": ["airplane", "automobile", "bird"],
    "cifar100": ["apple", "aquarium_fish", "baby", "bear"],
    "mnist": NUMBERS,
    "fashion-mnist": NUMBERS,
    "pacs": ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"],
    "office_home": [f"Class_{number:02d}" for number in range(65)],
}
COLUMNS = {  # columns in the mirrors' cards, images first
    "cifar10": ("img", "label"),
    "cifar100": ("img", "fine_label", "coarse_label"),
    "mnist": ("image", "label"),
    "fashion-mnist": ("image", "label"),
    "pacs": ("image", "domain", "label"),
    "office_home": ("image", "domain", "label"),
}


@pytest.fixture
def mirror(tmp_path, some_pictures, monkeypatch):
    """Make the files of a mirror, and let the name point there; return labels and domains by split."""

    def make(name, without=""):
        features = {column: datasets.ClassLabel(names=NAMES[name]) for column in COLUMNS[name]}
        features[COLUMNS[name][0]] = datasets.Image()
        if "coarse_label" in features:
            features["coarse_label"] = datasets.ClassLabel(names=[f"s{number}" for number in range(20)])
        if "domain" in features:
            features["domain"] = datasets.Value("string")
        content = {}
        for split, each in [("train", 8)] if "domain" in features else [("train", 8), ("test", 2)]:
            count = len(NAMES[name]) * each
            columns = {column: [i % len(NAMES[name]) for i in range(count)] for column in COLUMNS[name]}
            columns[COLUMNS[name][0]] = [
                picture.convert("L") if "mnist" in name else picture
                for picture in (some_pictures[i % 12] for i in range(count))
            ]
            if "coarse_label" in columns:
                columns["coarse_label"] = [7 * (label % 2) for label in columns["fine_label"]]
            if "domain" in columns:
                columns["domain"] = [KNOWN[name].domains[i // len(NAMES[name]) % 4] for i in range(count)]
            content[split] = columns
            if without:
                del columns[without], features[without]
            data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            (tmp_path / "hub" / name / "data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / "hub" / name / "data" / f"{split}-00000-of-00001.parquet")
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], mirror=str(tmp_path / "hub" / name)))
        return content

    return make


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fetched_is_read_by_its_name(name, mirror, tmp_path, some_pictures):
    content = mirror(name)
    root = tmp_path / "sets" / "here"
    place = mirrors.fetch(name, root)
    total = sum(len(next(iter(columns.values()))) for columns in content.values())
    assert list(root.iterdir()) == [place]
    source = load_source(DataConfig(source=name, root=str(root)))
    splits = (source.train, source.validation, source.test)
    assert (source.name, source.templates) == (name, (KNOWN[name].template,))
    assert source.class_names == (KNOWN[name].classes or tuple(NAMES[name]))
    if KNOWN[name].domains:
        assert source.train.domain_names == KNOWN[name].domains
        pairs = sorted((split.domains[i], split.labels[i]) for split in splits for i in range(len(split)))
        assert pairs == sorted((i // len(NAMES[name]) % 4, i % len(NAMES[name])) for i in range(total))
        found = {np.asarray(split.image(0)).tobytes() for split in splits if len(split)}
        assert found <= {np.asarray(picture).tobytes() for picture in some_pictures}
        return
    label = "fine_label" if name == "cifar100" else "label"
    assert source.test.labels.tolist() == content["test"][label]
    assert len(source.train) + len(source.validation) == len(content["train"][label])
    for index in (0, len(source.test) - 1):
        expected = some_pictures[index % 12].convert("L" if "mnist" in name else "RGB").convert("RGB")
        assert np.array_equal(np.asarray(source.test.image(index)), np.asarray(expected))
    if name == "cifar100":
        assert source.superclasses == (0, 1, 0, 1)


def test_an_existing_dataset_is_not_replaced(mirror, tmp_path):
    mirror("pacs")
    (tmp_path / "PACS").mkdir()
    with raises(DataError, where=str(tmp_path / "PACS"), remedy="--to"):
        mirrors.fetch("pacs", tmp_path)


@pytest.mark.parametrize(
    ("name", "where", "remedy"),
    [("oxford_pets", "oxford_pets", "DATASETS.md"), ("oxfordpets", "the name of the dataset", "'oxford_pets'")],
)
def test_names_without_a_mirror(name, where, remedy, tmp_path):
    with raises(DataError, where=where, remedy=remedy):
        mirrors.fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("without", "problem"),
    [("label", "data.label_column"), ("domain", "the domains must be art_painting, ")],
)
def test_a_mirror_with_other_content_leaves_nothing(mirror, tmp_path, without, problem):
    mirror("pacs", without)
    with raises(DataError, where="hf:", problem=problem, remedy="Get pacs from https://"):
        mirrors.fetch("pacs", tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_hub_out_of_reach_is_a_line(tmp_path, monkeypatch):
    def fails(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with raises(DataError, where="hf:uoft-cs/cifar10", problem="no route to host"):
        mirrors.fetch("cifar10", tmp_path)


def test_command_says_how_to_go_on(mirror, tmp_path, command):
    mirror("pacs")
    ended = command("data", "get", "pacs", "--to", str(tmp_path / "sets"))
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert f"--data pacs --set data.root={tmp_path / 'sets'}" in said
    assert ended.err.endswith(f"Next: fedpgp data check {tmp_path / 'sets' / 'pacs'}\n")
