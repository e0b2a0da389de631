"""Tiny ImageNet as its archive unpacks."""

import pytest
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, read_listing
from fedpgp.errors import DataError

CLASSES = ["n02124075", "n01443537", "n02999410"]
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n02124075": "chain, mail",
    "n02999410": "chain",
    "n00001740": "entity",
}


@pytest.fixture
def tiny(put):
    root = put(
        *(f"tiny-imagenet-200/train/{one}/images/{one}_{i}.JPEG" for one in CLASSES for i in range(4)),
        *(f"tiny-imagenet-200/val/images/val_{i}.JPEG" for i in range(6)),
        *(f"tiny-imagenet-200/test/images/test_{i}.JPEG" for i in range(2)),
    )
    place = root / "tiny-imagenet-200"
    (place / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    (place / "words.txt").write_text("".join(f"{one}\t{words}\n" for one, words in WORDS.items()))
    lines = [f"val_{i}.JPEG\t{CLASSES[i % 3]}\t0\t1\t30\t31\n" for i in range(6)]
    (place / "val/val_annotations.txt").write_text("".join(lines))
    (place / "train" / CLASSES[0] / f"{CLASSES[0]}_boxes.txt").write_text("x 0 0 1 1\n")
    return root


def test_classes_have_the_order_of_the_file_and_names_that_differ(tiny):
    assert layout_of(tiny / "tiny-imagenet-200") == "tiny_imagenet"
    source = load_source(DataConfig(source="tiny_imagenet", root=str(tiny)))
    assert source.class_names == ("chain, mail", "goldfish", "chain")
    assert source.test.labels.tolist() == [0, 1, 2, 0, 1, 2], "in the order of the annotations"
    assert sorted([*source.train.labels, *source.validation.labels]) == [0] * 4 + [1] * 4 + [2] * 4
    assert "train/n02124075/images/n02124075_" in source.train.describe(0)
    assert source.train.image(0).size == (32, 32)


def test_files_of_systems_are_ignored(tiny):
    place = tiny / "tiny-imagenet-200/train" / CLASSES[0] / "images"
    for name in (f"._{CLASSES[0]}_0.JPEG", "Thumbs.db"):
        (place / name).write_bytes(b"x")
    assert len(read_listing(DataConfig(source="tiny_imagenet", root=str(tiny))).labels) == 18


@pytest.mark.parametrize(
    ("file", "content", "place", "fields"),
    [
        ("wnids.txt", "n02124075\nn09999999\n", "", {"problem": "'n09999999'", "remedy": "http"}),
        ("wnids.txt", "n02124075\n../../etc\n", "", {"problem": "'../../etc'"}),
        ("words.txt", "n01443537\tgoldfish\n", "", {"problem": "'n02124075'", "remedy": "http"}),
        ("val/val_annotations.txt", "val_0.JPEG\tn1\n", ":1", {"got": "val_0.JPEG\tn1"}),
        ("val/val_annotations.txt", "../../x\tn01443537\n", ":1: the path", {"got": "val/images/../../x"}),
        ("val/val_annotations.txt", "nothing\n", ":1", {"allowed": "wnids.txt", "got": "nothing"}),
    ],
)
def test_damaged_files_are_refused(tiny, file, content, place, fields):
    (tiny / "tiny-imagenet-200" / file).write_text(content)
    with raises(DataError, where=f"{file}{place}", **fields):
        read_listing(DataConfig(source="tiny_imagenet", root=str(tiny)))
