"""ImageNet and FGVC-Aircraft."""

import numpy as np
import pytest
from disk import file_of
from raising import raises

from fedpgp.data.check import check
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source, load_target, read_listing
from fedpgp.errors import DataError

IDENTIFIERS = ["n04356056", "n01440764", "n04355933", "n04008634"]  # not sorted
LINES = ["sunglasses", "tench", "sunglasses", "missile"]
VARIANTS = ["707-320", "An-12", "Boeing 717"]


@pytest.fixture
def imagenet(put):
    root = put(
        *(f"imagenet/images/train/{one}/{one}_{i}.JPEG" for one in IDENTIFIERS for i in range(4)),
        *(f"imagenet/images/val/{one}/ILSVRC2012_val_{i}.JPEG" for one in IDENTIFIERS for i in range(2)),
    )
    lines = [f"{one} {name}\n" for one, name in zip(IDENTIFIERS, LINES, strict=True)]
    (root / "imagenet/classnames.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("header", ["", "identifier name\n"])
def test_imagenet(imagenet, header):
    file = imagenet / "imagenet/classnames.txt"
    file.write_text(header + file.read_text())
    assert layout_of(imagenet / "imagenet") == "imagenet"
    source = load_source(DataConfig(source="imagenet", root=str(imagenet)))
    assert source.class_names == ("sunglasses", "tench", "sunglass", "missile")
    assert (source.name, len(source.validation), len(source.test)) == ("imagenet", 4, 8)
    for dataset in (source.train, source.test):
        for index in range(len(dataset)):
            assert file_of(dataset, index).parent.name == IDENTIFIERS[dataset.labels[index]]


def test_imagenet_with_other_names(imagenet):
    names = imagenet / "names.txt"
    names.write_text("".join(f"{one}\tthing {i}\n" for i, one in enumerate(sorted(IDENTIFIERS))))
    found = read_listing(DataConfig(source="imagenet", root=str(imagenet), names=str(names)))
    assert found.class_names == ("thing 0", "thing 1", "thing 2", "thing 3")


def test_imagenet_without_a_name(imagenet, put):
    put("imagenet/images/train/n00000001/1.JPEG")
    with raises(DataError, where="classnames.txt", problem="'n00000001'"):
        read_listing(DataConfig(source="imagenet", root=str(imagenet)))


@pytest.mark.parametrize(
    ("name", "images", "folders"),
    [
        ("imagenetv2", "imagenetv2/imagenetv2-matched-frequency-format-val", ("0", "1", "2", "3")),
        ("imagenet-sketch", "imagenet-sketch/images", IDENTIFIERS),
        ("imagenet-a", "imagenet-adversarial/imagenet-a", IDENTIFIERS[2:0:-1]),
        ("imagenet-r", "imagenet-rendition/imagenet-r", IDENTIFIERS[1:3]),
    ],
)
def test_other_versions_of_imagenet_have_its_names(imagenet, put, name, images, folders):
    put(*(f"{images}/{one}/{i}.JPEG" for one in folders for i in range(3)))
    directory = imagenet / images.split("/")[0]
    (directory / "classnames.txt").write_bytes((imagenet / "imagenet/classnames.txt").read_bytes())
    assert layout_of(directory) == name
    target = load_target(DataConfig(source=name, root=str(imagenet)))
    whole = ("sunglasses", "tench", "sunglass", "missile")
    present = range(4) if len(folders) == 4 else (1, 2)
    assert (target.name, target.split, len(target)) == (name, "test", 3 * len(folders))
    assert target.class_names == tuple(whole[place] for place in present)
    for index in range(len(target)):
        one = file_of(target, index).parent.name
        place = int(one) if one.isdecimal() else IDENTIFIERS.index(one)
        assert target.class_names[target.labels[index]] == whole[place]
    put(f"{images}/other/1.JPEG")
    with raises(DataError, where=f"{images}: the name of a folder", allowed="classnames.txt", got="other"):
        load_target(DataConfig(source=name, root=str(imagenet)))


@pytest.fixture
def aircraft(put, tmp_path):
    """Three images of each variant in each list."""
    rows = {
        part: [(f"{split}{label}{i}", label) for i in range(3) for label in (2, 0, 1)]
        for split, part in enumerate(("train", "val", "test"))
    }
    root = put(*(f"fgvc_aircraft/images/{image}.jpg" for some in rows.values() for image, _ in some))
    directory = root / "fgvc_aircraft"
    (directory / "variants.txt").write_text("".join(f"{name}\n" for name in VARIANTS))
    for part, some in rows.items():
        text = "".join(f"{image} {VARIANTS[label]}\n" for image, label in some)
        (directory / f"images_variant_{part}.txt").write_text(text)
    return directory


def test_aircraft(aircraft):
    assert layout_of(aircraft) == "fgvc_aircraft"
    source = load_source(DataConfig(source="fgvc_aircraft", root=str(aircraft.parent)))
    assert (list(source.class_names), source.templates) == (VARIANTS, ("a photo of a {}, a type of aircraft.",))
    for number, dataset in enumerate((source.train, source.validation, source.test)):
        assert np.bincount(dataset.labels).tolist() == [3, 3, 3]
        for index in range(9):
            assert file_of(dataset, index).name[:2] == f"{number}{dataset.labels[index]}"


@pytest.mark.parametrize(
    ("line", "number", "got"),
    [
        ("001 Concorde", 10, "001 Concorde"),
        ("../1 An-12", 10, "../1.jpg"),
        ("001", 10, "001"),
        ("/1 An-12", 10, "/1.jpg"),
        ("\n001", 11, "001"),
    ],
)
def test_aircraft_with_a_wrong_line(aircraft, line, number, got):
    with (aircraft / "images_variant_val.txt").open("a") as file:
        file.write(line)
    with raises(DataError, where=f"images_variant_val.txt:{number}", got=got):
        read_listing(DataConfig(source="fgvc_aircraft", root=str(aircraft.parent)))


def test_the_check_says_the_layout_of_a_name(aircraft):
    data = DataConfig(source="fgvc_aircraft", root=str(aircraft.parent))
    report = check(data)
    assert (report.layout, report.images, report.usable) == ("fgvc_aircraft", 27, True)
    (aircraft / "images_variant_val.txt").write_text("none\n")
    report = check(data)
    assert (report.layout, report.usable) == ("fgvc_aircraft", False)
    (aircraft / "variants.txt").unlink()
    with raises(DataError, where="data.source", problem="imagenet"):
        check(DataConfig(source="imagenet", root=str(aircraft.parent)))
