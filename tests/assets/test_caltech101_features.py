"""The committed features of Caltech101's photographs, and the tool that computes them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from build_caltech101_features import build
from checksum_assets import checksums_of
from PIL import Image
from safetensors.torch import load_file

from fedpgp.backbone import load_backbone
from fedpgp.data.features import split_features
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source
from fedpgp.data.sources.caltech101 import ABOUT, FEATURES, NAME, SPLIT

IMAGES = os.environ.get("FEDPGP_CALTECH101", "")  # the published directory
SPLITS = ("train", "validation", "test")
needs_images = pytest.mark.skipif(not IMAGES, reason="FEDPGP_CALTECH101 names no folder with the published images")


@pytest.fixture(scope="module")
def shipped():
    return load_source(DataConfig(source=NAME, root="nowhere"))


@pytest.fixture(scope="module")
def photoclip():
    return load_backbone("photoclip")


def test_the_split_is_coops(shipped):
    assert [len(getattr(shipped, split)) for split in SPLITS] == [4128, 1649, 2465]
    assert len(shipped.class_names) == 100 and shipped.class_names[0] == "face"
    for split in SPLITS:
        dataset = getattr(shipped, split)
        assert set(dataset.labels.tolist()) == set(range(100))
        assert dataset.features.values.shape == (len(dataset), 512)


def test_they_are_of_the_embedded_tower_and_their_checksums_are_current(shipped, photoclip, assets):
    assert shipped.train.features.checkpoint == "photoclip"
    assert shipped.train.features.encoder == photoclip.image.fingerprint
    listed = json.loads((assets / "checksums.json").read_text())
    mine = {path: digest for path, digest in listed.items() if path.startswith(f"{NAME}/")}
    assert len(mine) == 3
    assert mine == {path: digest for path, digest in checksums_of(assets).items() if path.startswith(f"{NAME}/")}


def test_photographs_are_recognised_by_name(shipped, photoclip):
    text = photoclip.template_features("a photo of a {}.", shipped.class_names)
    answers = (shipped.validation.features.values.float() @ text.T).argmax(1).numpy()
    assert (answers == shipped.validation.labels).mean() > 0.5  # chance level: 0.01


def test_the_tool_makes_them_in_the_order_of_the_split_file(tmp_path, pictograms, backbone):
    folder = tmp_path / "published"
    entries = {"train": [], "val": [], "test": []}
    for part, dataset in zip(entries, (pictograms.train, pictograms.validation, pictograms.test), strict=True):
        for label in (1, 0):
            for i in dataset.of_classes([label])[:2]:
                path = f"{label}/{part}{i}.png"
                entries[part].append([path, label, dataset.class_names[label]])
                (folder / "101_ObjectCategories" / path).parent.mkdir(parents=True, exist_ok=True)
                dataset.image(int(i)).save(folder / "101_ObjectCategories" / path)
    (folder / SPLIT).write_text(json.dumps(entries))
    made = [tmp_path / "assets", tmp_path / "again"]
    for number, assets in enumerate(made):
        build(folder, assets, tmp_path / f"cache{number}", "pictoclip")
    files = [sorted(path.relative_to(assets) for path in assets.rglob("*.*")) for assets in made]
    assert files[0] == files[1] == [Path(NAME, ABOUT), Path(NAME, FEATURES), Path(NAME, SPLIT), Path("checksums.json")]
    assert all((made[0] / path).read_bytes() == (made[1] / path).read_bytes() for path in files[0])
    about = json.loads((made[0] / NAME / ABOUT).read_text())
    assert about == {"checkpoint": "pictoclip", "encoder": backbone.image.fingerprint}
    values = load_file(made[0] / NAME / FEATURES)["features"]
    paths = [path for part in entries.values() for path, _, _ in part]
    for row, path in zip(values, paths, strict=True):
        picture = Image.open(folder / "101_ObjectCategories" / path).convert("RGB")
        assert (backbone.image([picture])[0] - row.float()).abs().max() < 1e-3


@needs_images
@pytest.mark.slow
def test_they_equal_those_of_the_images_to_half_precision(shipped, photoclip, tmp_path):
    images = load_source(DataConfig(source=IMAGES, layout="coop"))
    for split in SPLITS:
        stored, read = getattr(shipped, split), getattr(images, split)
        assert stored.labels.tolist() == read.labels.tolist()
        some = np.arange(0, len(read), 97)
        part = read.select(some)
        features, _ = split_features(photoclip.image, [part], tmp_path)
        expected = features[part.fingerprint]
        # Half precision rounds by at most 2^-11, and another batch size may change the last bits before rounding.
        torch.testing.assert_close(stored.features.values[some].float(), expected, rtol=2**-11, atol=2e-6)
