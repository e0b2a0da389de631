"""Features that replace the images of Caltech101: their content, and settings that need the images."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import refused, sets
from disk import save
from raising import raises
from safetensors.torch import load_file, save_file

import fedpgp
from fedpgp import assets
from fedpgp.data.check import check
from fedpgp.data.features import ViewFeatures, split_features
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source, load_target
from fedpgp.data.sources.caltech101 import ABOUT, FEATURES, IMAGES, NAME, SPLIT
from fedpgp.errors import DataError
from fedpgp.report.page.run_details import examples, models

CLASSES = ("zebra fish", "ant", "mule", "emu", "lamp", "sea horse")  # not in alphabetical order
COUNTS = {"train": 4, "val": 1, "test": 3}
ENTRIES = {
    split: [[f"{name}/{split}{i}.jpg", label, name] for i in range(count) for label, name in enumerate(CLASSES)]
    for split, count in COUNTS.items()
}
PATHS = [path for entries in ENTRIES.values() for path, _, _ in entries]
ON = ("data.source=caltech101", "data.root=nowhere")


def renew_checksums() -> None:
    """Update the checksums, as if the package had shipped the present files of the small asset."""
    file = assets.DIRECTORY / "checksums.json"
    digests = {
        f"{NAME}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (assets.DIRECTORY / NAME).iterdir()
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | digests))


def replace_features(values) -> None:
    save_file({"features": values}, assets.DIRECTORY / NAME / FEATURES)
    renew_checksums()


@pytest.fixture
def values(backbone) -> torch.Tensor:
    """[n, D] in half precision: the features of a class are near the text feature of its name."""
    rng = torch.Generator().manual_seed(0)
    names = backbone.template_features("a photo of a {}.", CLASSES)
    labels = [label for entries in ENTRIES.values() for _, label, _ in entries]
    noise = 0.6 * torch.randn(len(labels), names.shape[1], generator=rng)
    return F.normalize(names[labels] + noise, dim=1).half()


@pytest.fixture(autouse=True)
def asset(backbone, values, tmp_path, monkeypatch) -> Path:
    """A small asset for the tower of the embedded icons, next to the other assets."""
    directory = tmp_path / "assets"
    (directory / NAME).mkdir(parents=True)
    for path in assets.DIRECTORY.iterdir():
        if path.name not in (NAME, "checksums.json"):
            (directory / path.name).symlink_to(path)
    digests = json.loads((assets.DIRECTORY / "checksums.json").read_text())
    others = {path: digest for path, digest in digests.items() if not path.startswith(NAME)}
    (directory / "checksums.json").write_text(json.dumps(others))
    monkeypatch.setattr(assets, "DIRECTORY", directory)
    (directory / NAME / SPLIT).write_text(json.dumps(ENTRIES))
    about = {"checkpoint": "pictoclip", "encoder": backbone.image.fingerprint}
    (directory / NAME / ABOUT).write_text(json.dumps(about))
    replace_features(values)
    return directory / NAME


@pytest.fixture
def source(tmp_path):
    return load_source(DataConfig(source=NAME, root=str(tmp_path)))


@pytest.fixture
def images(tmp_path):
    """Write images of the list below a root, and return the root."""

    def write(paths=tuple(PATHS), split=True) -> Path:
        for shade, path in enumerate(paths):
            save(tmp_path / "root/caltech-101" / IMAGES / path, shade)
        if split:
            (tmp_path / "root/caltech-101" / SPLIT).write_text(json.dumps(ENTRIES))
        return tmp_path / "root"

    return write


def test_splits_classes_and_features_have_the_order_of_the_split_file(source, values):
    assert (source.name, source.class_names) == (NAME, CLASSES)
    start = 0
    for dataset, split in ((source.train, "train"), (source.validation, "val"), (source.test, "test")):
        assert dataset.labels.tolist() == [label for _, label, _ in ENTRIES[split]]
        assert torch.equal(dataset.features.values, values[start : start + len(dataset)])
        assert ENTRIES[split][1][0] in dataset.describe(1)
        start += len(dataset)
    assert torch.equal(load_target(DataConfig(source=NAME)).features.values, source.test.features.values)


def test_a_selection_has_its_own_features(source):
    part = pickle.loads(pickle.dumps(source.train.select(np.array([5, 2]))))
    assert torch.equal(part.features.values, source.train.features.values[[5, 2]])
    assert part.fingerprint != source.train.fingerprint


def test_images_are_read_where_they_are(images):
    found = load_source(DataConfig(source=NAME, root=str(images())))
    assert found.train.features is None and found.train.image(0).size == (4, 4)


def test_a_layout_demands_images(tmp_path):
    with raises(DataError, where="data.source", problem="caltech101"):
        load_source(DataConfig(source=NAME, root=str(tmp_path), layout="coop"))


def test_other_names_are_given(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"my {name}" for name in CLASSES))
    named = load_source(DataConfig(source=NAME, root=str(tmp_path), names=str(tmp_path / "names.txt")))
    assert named.class_names[0] == "my zebra fish"


def test_what_is_read_has_unit_length_and_nothing_is_encoded_or_kept(source, values, backbone, tmp_path):
    told = []
    splits = [source.train, source.test]
    features, _ = split_features(
        backbone.image, splits, tmp_path / "cache", progress=lambda *report: told.append(report)
    )
    found = features[source.train.fingerprint]
    assert found.dtype == torch.float32
    assert (found - values[: len(source.train)].float()).abs().max() < 1e-3
    assert (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert [report[-1] for report in told] == ["no image encoded: all from the package"]
    assert not (tmp_path / "cache").exists()


def test_a_run_gets_right_what_the_features_get_right(backbone, values, tmp_path):
    run = fedpgp.run(
        "zero-shot", changes=[*ON, "task.clients=3", "task.shots=2", "federation.rounds=1"], cache=tmp_path
    )
    text = backbone.template_features("a photo of a {}.", CLASSES)
    labels = np.array([label for _, label, _ in ENTRIES["test"]])
    tested = values[-len(labels) :].double()
    for metric, classes in (("base", [0, 1, 2]), ("novel", [3, 4, 5])):
        rows = np.isin(labels, classes)
        right = (tested[rows] @ text[classes].double().T).argmax(1).numpy() + classes[0] == labels[rows]
        assert 0.4 < right.mean() < 1
        assert run.results["final"][metric] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("promptfl", ("backbone.checkpoint=photoclip",), ("--backbone pictoclip", "backbone.precision=float32")),
        ("promptfl", ("backbone.precision=float64",), ("--backbone pictoclip", "backbone.precision=float32")),
        ("fedotp", (), ("fedotp reads patches",)),
        ("fedvpt", (), ("fedvpt reads states",)),
        ("promptfl", ("data.augmented_views=2",), ("--set data.augmented_views=1",)),
    ],
)
def test_settings_that_need_images_are_refused_before_any_work(method, changes, expected, command, tmp_path):
    ended = command("run", "--method", method, "-o", "out", *sets(*ON, *changes, "task.shots=2"))
    refused(ended, "caltech101: ", "pictoclip", "`fedpgp data get caltech101`", *expected)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_only_tested_on_is_refused_too(source, backbone, compact, tmp_path):
    with raises(DataError, where=NAME, remedy="--backbone pictoclip"):
        split_features(compact.image, [source.test], tmp_path)
    with raises(DataError, where=NAME, problem="patches"):
        ViewFeatures(backbone.image, source.test, tmp_path, "patches").load()


def test_no_image_is_opened(source):
    with raises(DataError, where="zebra fish/train0.jpg of caltech101", remedy="`fedpgp data get caltech101`"):
        source.train.image(0)


def test_a_report_leaves_pictures_out(tmp_path):
    changes = [*ON, "task.clients=3", "task.shots=1", "federation.rounds=1", "promptfl.ctx_init=random"]
    run = fedpgp.run("promptfl", changes=changes, output=tmp_path / "out", cache=tmp_path)
    with raises(DataError, where="of caltech101", problem="pictoclip"):
        examples(models(run))


@pytest.mark.parametrize(
    ("change", "place", "got"),
    [
        (lambda values: values.float(), "features", "torch.float32 [48, 128]"),
        (lambda values: values[1:].clone(), "features", "torch.float16 [47, 128]"),
        (lambda values: values.index_fill(0, torch.tensor([7]), torch.nan), "row 7", "nan"),
        (lambda values: values.index_fill(0, torch.tensor([9]), 0.0), "row 9", "0.0"),
    ],
)
def test_features_of_another_shape_type_or_length_are_refused(change, place, got, asset):
    replace_features(change(load_file(asset / FEATURES)["features"]))
    with raises(DataError, where=FEATURES) as error:
        load_source(DataConfig(source=NAME))
    assert place in error.value.where and str(error.value.got) == got


@pytest.mark.parametrize(("file", "content"), [(FEATURES, b"not a tensor"), (ABOUT, b"{}"), (ABOUT, b"[")])
def test_damaged_files_are_named(file, content, asset):
    (asset / file).write_bytes(content)
    with pytest.raises(DataError, match=file):
        load_source(DataConfig(source=NAME))
    renew_checksums()
    with raises(DataError, where=FEATURES, problem=ABOUT):
        load_source(DataConfig(source=NAME))


def test_checking_decodes_nothing_and_says_so(command):
    report = check(DataConfig(source=NAME))
    assert report.usable and report.images == len(PATHS)
    assert report.counts["splits"] == {"train": 24, "validation": 6, "test": 18}
    said = " ".join(command("data", "check", NAME, *sets("task.shots=2")).out.split())
    assert "layout: features without images; 48 images" in said
    assert "`fedpgp data get caltech101`" in said


def test_who_holds_what_is_shown_without_images(command):
    ended = command("data", "show", "--data", NAME, *sets("task.shots=2"))
    assert ended.code == 0 and "base-to-novel on caltech101" in ended.out


class TestGetting:
    def test_without_images_the_steps_are_told(self, command):
        ended = command("data", "get", NAME)
        refused(ended, "CC BY 4.0", "https://data.caltech.edu", "data/caltech-101/101_", "--backbone photoclip")

    def test_all_images_are_there_and_the_split_file_is_added(self, command, images, asset):
        root = images(split=False)
        ended = command("data", "get", NAME, "--to", str(root))
        assert ended.code == 0 and "Next: fedpgp data check" in ended.err
        assert (root / "caltech-101" / SPLIT).read_bytes() == (asset / SPLIT).read_bytes()
        assert load_source(DataConfig(source=NAME, root=str(root))).train.features is None

    def test_images_without_the_split_file_need_the_command(self, images):
        with raises(DataError, problem="0", remedy="`fedpgp data get caltech101`"):
            load_source(DataConfig(source=NAME, root=str(images(split=False))))

    def test_missing_images_are_counted(self, command, images):
        ended = command("data", "get", NAME, "--to", str(images(PATHS[:-2])))
        refused(ended, "2 of 48", PATHS[-2])

    def test_another_split_is_refused(self, command, images):
        root = images()
        (root / "caltech-101" / SPLIT).write_text(json.dumps(ENTRIES | {"val": ENTRIES["test"]}))
        refused(command("data", "get", NAME, "--to", str(root)), f"{root / 'caltech-101' / SPLIT}: ")
