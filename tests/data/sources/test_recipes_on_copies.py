"""Every recipe of the paper finds its data in copies of the datasets, in the layouts of the originals."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from fedpgp.studies.recipe import names
from fedpgp.studies.reproduction import reproduce

pytestmark = pytest.mark.slow

COOP = {
    "caltech-101/split_zhou_Caltech101.json": ("101_ObjectCategories", 100),
    "oxford_pets/split_zhou_OxfordPets.json": ("images", 37),
    "oxford_flowers/split_zhou_OxfordFlowers.json": ("jpg", 102),
    "dtd/split_zhou_DescribableTextures.json": ("images", 47),
    "food-101/split_zhou_Food101.json": ("images", 101),
}
OFFICE = "back_pack bike calculator headphones keyboard laptop_computer monitor mouse mug projector".split()  # noqa: SIM905
NET = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
TEN = "bird feather headphones ice_cream teapot tiger whale windmill wine_glass zebra".split()  # noqa: SIM905
VERSIONS = {
    "imagenetv2/imagenetv2-matched-frequency-format-val": range(40),
    "imagenet-sketch/images": [f"n{i:08d}" for i in range(40)],
    "imagenet-adversarial/imagenet-a": [f"n{i:08d}" for i in range(0, 40, 2)],
    "imagenet-rendition/imagenet-r": [f"n{i:08d}" for i in range(0, 40, 3)],
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Return links to one picture: enough for 16 shots and a test."""
    root = tmp_path_factory.mktemp("data")
    Image.new("RGB", (8, 8), (200, 30, 30)).save(root / "one.jpg")

    def link(path):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / "one.jpg", file)

    for file, (images, count) in COOP.items():
        counts = {"train": 16, "val": 4, "test": 2}
        entries = {
            split: [[f"c{c}/{split}{i}.jpg", c, f"class {c}"] for c in range(count) for i in range(of_split)]
            for split, of_split in counts.items()
        }
        for path, _, _ in [entry for of_split in entries.values() for entry in of_split]:
            link(f"{file.split('/')[0]}/{images}/{path}")
        (root / file).write_text(json.dumps(entries))
    for domain in ("amazon", "caltech", "dslr", "webcam"):
        for name in OFFICE:
            for i in range(8):
                link(f"office_caltech10/{domain}/{name}/{i}.jpg")
    for domain in NET:
        for split, count in (("train", 4), ("test", 2)):
            paths = [(f"{domain}/{name}/{split}{i}.jpg", c) for c, name in enumerate(TEN) for i in range(count)]
            for path, _ in paths:
                link(f"domainnet/{path}")
            (root / f"domainnet/{domain}_{split}.txt").write_text("".join(f"{path} {c}\n" for path, c in paths))
    lines = "".join(f"n{c:08d} thing {c}\n" for c in range(40))
    for c in range(40):
        for split, count in (("train", 20), ("val", 2)):
            for i in range(count):
                link(f"imagenet/images/{split}/n{c:08d}/{i}.JPEG")
    (root / "imagenet/classnames.txt").write_text(lines)
    for place, folders in VERSIONS.items():
        for folder in folders:
            link(f"{place}/{folder}/0.JPEG")
        (root / place.split("/")[0] / "classnames.txt").write_text(lines)
    for folder, classes, files, keys in (
        (
            "cifar-10-batches-py",
            10,
            [f"data_batch_{n}" for n in range(1, 6)],
            ("batches.meta", "label_names", "labels"),
        ),
        ("cifar-100-python", 100, ["train"], ("meta", "fine_label_names", "fine_labels")),
    ):
        (root / folder).mkdir()
        meta, names_key, labels_key = keys
        (root / folder / meta).write_bytes(pickle.dumps({names_key: [f"thing {c}" for c in range(classes)]}))
        for file in [*files, "test" if classes == 100 else "test_batch"]:
            labels = [c for c in range(classes) for _ in range(20)]
            content = {"data": np.zeros((len(labels), 3072), np.uint8), labels_key: labels}
            content |= {"coarse_labels": [label // 5 for label in labels]} if classes == 100 else {}
            (root / folder / file).write_bytes(pickle.dumps(content))
    return root


@pytest.mark.parametrize("name", names())
def test_every_cell_can_be_run(name, copies, monkeypatch):
    study = reproduce(name, data=copies, backbone="pictoclip", output=None)
    study.check()
    assert f"{len(study.distinct_cells)} cell" in study.plan()
