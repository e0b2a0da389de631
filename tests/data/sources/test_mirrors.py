"""Data sets from a mirror: they are read where they are put like the official files, and nothing is half there."""

from dataclasses import replace

import datasets
import numpy as np
import pytest

from fedpgp.data import mirrors
from fedpgp.data.decode import decode
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import domains, load_source
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
SPELT = {
    "pacs": ["art_painting", "cartoon", "photo", "sketch"],
    "office_home": ["Art", "Clipart", "Product", "RealWorld"],
}


@pytest.fixture
def mirror(tmp_path, some_pictures, monkeypatch):
    """Makes a mirror's files, and has the name point there; gives labels and domains by split."""

    def make(name, **dropped):
        one = mirrors.MIRRORS[name]
        features = {column: datasets.ClassLabel(names=NAMES[name]) for column in one.columns}
        features[one.columns[0]] = datasets.Image()
        if "coarse_label" in features:
            features["coarse_label"] = datasets.ClassLabel(names=[f"s{number}" for number in range(20)])
        if "domain" in features:
            features["domain"] = datasets.Value("string")
        said = {}
        for split, each in zip(one.splits, (8, 2), strict=False):
            count = len(NAMES[name]) * each
            columns = {column: [i % len(NAMES[name]) for i in range(count)] for column in one.columns}
            columns[one.columns[0]] = [
                picture.convert("L") if "mnist" in name else picture
                for picture in (some_pictures[i % 12] for i in range(count))
            ]
            if "coarse_label" in columns:
                columns["coarse_label"] = [7 * (label % 2) for label in columns["fine_label"]]
            if "domain" in columns:
                columns["domain"] = [SPELT[name][i // len(NAMES[name]) % 4] for i in range(count)]
            said[split] = columns
            for column in dropped.get("columns", []):
                del columns[column], features[column]
            data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            (tmp_path / "hub" / name / "data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / "hub" / name / "data" / f"{split}-00000-of-00001.parquet")
        monkeypatch.setitem(mirrors.MIRRORS, name, replace(one, repository=str(tmp_path / "hub" / name)))
        return said

    return make


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fetched_is_read_by_its_name(name, mirror, tmp_path, some_pictures):
    said, told = mirror(name), []
    root = tmp_path / "sets" / "here"
    place = mirrors.fetch(name, root, lambda done, total: told.append((done, total)))
    total = sum(len(next(iter(columns.values()))) for columns in said.values())
    assert told == [(i, total) for i in range(1, total + 1)]
    assert list(root.iterdir()) == [place]
    source = load_source(DataConfig(source=name, root=str(root)))
    splits = (source.train, source.validation, source.test)
    if name in SPELT:
        assert source.train.domain_names == domains.FOLDERS[name]
        pairs = sorted((split.domains[i], split.labels[i]) for split in splits for i in range(len(split)))
        assert pairs == sorted((i // len(NAMES[name]) % 4, i % len(NAMES[name])) for i in range(total))
        found = {np.asarray(split.image(0)).tobytes() for split in splits if len(split)}
        assert found <= {np.asarray(picture).tobytes() for picture in some_pictures}
        return
    label = "fine_label" if name == "cifar100" else "label"
    assert source.test.labels.tolist() == said["test"][label]
    assert len(source.train) + len(source.validation) == len(said["train"][label])
    for index in (0, len(source.test) - 1):
        expected = some_pictures[index % 12].convert("L" if "mnist" in name else "RGB").convert("RGB")
        assert np.array_equal(np.asarray(source.test.image(index)), np.asarray(expected))
    if name == "cifar100":
        assert source.superclasses == (0, 7, 0, 7)


def test_what_is_there_is_left_alone(mirror, tmp_path):
    mirror("pacs")
    (tmp_path / "PACS").mkdir()
    with pytest.raises(DataError, match=r"pacs is at .*PACS already: remove that, or choose another .* --to"):
        mirrors.fetch("pacs", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oxford_pets", r"oxford_pets is on no mirror that is known: get it from https://.*DATASETS.md and put it at"),
        ("oxfordpets", r"must be a known one, got 'oxfordpets'; did you mean 'oxford_pets'\?"),
    ],
)
def test_names_without_a_mirror(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        mirrors.fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_mirror_than_it_was_leaves_nothing(mirror, tmp_path):
    mirror("pacs", columns=["domain"])
    with pytest.raises(DataError, match="lacks the split train or its column domain, so it is not what it was"):
        mirrors.fetch("pacs", tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_a_failure_in_the_middle_leaves_nothing(mirror, tmp_path, monkeypatch):
    mirror("pacs")
    monkeypatch.setitem(domains.FOLDERS, "pacs", ("art_painting", "cartoon", "photo", "clay"))
    with pytest.raises(DataError, match="sketch/dog, which is no domain and class of it"):
        mirrors.fetch("pacs", tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_picture_that_does_not_decode_is_not_taken_for_a_full_disk(mirror, tmp_path, monkeypatch):
    mirror("mnist")
    monkeypatch.setattr(mirrors, "decode", lambda content: decode(content[:40]))
    with pytest.raises(DataError, match="row 1 of the mirror's train split does not decode: "):
        mirrors.fetch("mnist", tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_hub_out_of_reach_is_a_line(tmp_path, monkeypatch):
    def fails(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match="hf:uoft-cs/cifar10 cannot be read from the hub: no route to host; check"):
        mirrors.fetch("cifar10", tmp_path)


def test_command_says_how_to_go_on(mirror, tmp_path, command):
    mirror("pacs")
    ended = command("data", "get", "pacs", "--to", str(tmp_path / "sets"))
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert f"fedpgp run --data pacs --set data.root={tmp_path / 'sets'}" in said
