"""The committed dataset: counts, order, disjoint splits, licences, checksums."""

import csv
import hashlib
import io
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from build_pictograms import CAPTURES, CLEAN, PIXELS, generator_for, images_of
from checksum_assets import checksums_of
from common import STYLES, read_concepts, read_sets
from PIL import Image

FILES = [(style, split) for style in STYLES for split in (*CAPTURES, CLEAN)]


def rows(assets, style, split):
    return pq.read_table(assets / "pictograms" / style / f"{split}.parquet").to_pylist()


def class_rows(assets):
    with (assets / "pictograms" / "classes.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_order_of_the_classes(assets):
    found = class_rows(assets)
    assert [row["split"] for row in found] == ["base"] * 50 + ["novel"] * 50 + ["unseen"] * 20
    assert [row["name"] for row in found] == [concept.name for concept in read_concepts()]
    assert len({row["name"] for row in found}) == 120


@pytest.mark.parametrize(("style", "split"), FILES)
def test_rows_of_a_file(assets, style, split):
    names = [row["name"] for row in class_rows(assets)]
    found = rows(assets, style, split)
    captures = CAPTURES.get(split, 1)
    expected = [(label, number) for label in range(120) for number in range(captures)]
    assert [(row["label"], row["capture"]) for row in found] == expected
    assert all(row["concept"] == names[row["label"]] for row in found)
    assert {row["style"] for row in found} == {style}
    assert {row["licence"] for row in found} == {read_sets()[style].licence}


def test_images_decode_at_the_promised_size(assets):
    for style, split in FILES:
        image = Image.open(io.BytesIO(rows(assets, style, split)[5]["image"]["bytes"]))
        assert (image.format, image.size, image.mode) == ("WEBP", (PIXELS, PIXELS), "RGB")


def test_no_image_is_in_two_places(assets):
    seen = [
        hashlib.sha256(row["image"]["bytes"]).digest()
        for style, split in FILES
        if split != CLEAN
        for row in rows(assets, style, split)
    ]
    assert len(seen) == 120 * 6 * 14
    assert len(set(seen)) == len(seen)


def test_loads_with_datasets(assets, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {split: [str(assets / "pictograms" / s / f"{split}.parquet") for s in STYLES] for split in CAPTURES}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 4320, "validation": 1440, "test": 4320}
    assert loaded["test"].features["label"].names == [row["name"] for row in class_rows(assets)]
    image = loaded["test"][0]["image"]
    assert np.asarray(image).shape == (PIXELS, PIXELS, 3)


def test_every_style_has_its_licence(assets):
    for style in STYLES:
        text = (assets / "pictograms" / style / "LICENSE").read_text(encoding="utf-8")
        icon_set = read_sets()[style]
        assert icon_set.licence in text
        assert icon_set.author in text
        assert icon_set.version in text


def test_notice_names_every_icon_set(assets):
    notice = (assets.parents[2] / "NOTICE").read_text(encoding="utf-8")
    for icon_set in read_sets().values():
        line = next(line for line in notice.splitlines() if f"@iconify-json/{icon_set.name} " in line)
        assert icon_set.version in line
        assert icon_set.licence in line
        assert icon_set.author in line


def test_checksums_are_those_of_the_files(assets):
    recorded = json.loads((assets / "checksums.json").read_text(encoding="utf-8"))
    assert recorded == checksums_of(assets)
    names = Counter(path.partition("/")[0] for path in recorded)
    assert names == {"pictograms": 25, "pictoclip": 6, "photoclip": 5, "caltech101": 3, "clip-tokenizer": 2}


def test_the_whole_is_small(assets):
    size = sum(path.stat().st_size for path in (assets / "pictograms").rglob("*") if path.is_file())
    assert size < 15e6


def test_draws_depend_on_split_style_and_concept():
    states = [
        generator_for(*key).initial_seed()
        for key in [
            ("train", "noto", "ant"),
            ("test", "noto", "ant"),
            ("test", "fxemoji", "ant"),
            ("test", "noto", "bee"),
        ]
    ]
    assert len(set(states)) == 4


def test_building_again_gives_the_same_images():
    drawing = np.random.default_rng(0).integers(0, 256, (96, 96, 4), dtype=np.uint8)
    first, second = (images_of(drawing, "test", "noto", "ant") for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (6, 3, PIXELS, PIXELS)
