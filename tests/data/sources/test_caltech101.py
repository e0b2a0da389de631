"""Features that stand in for the images of Caltech101: what is read of them, and what needs the images."""

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
from safetensors.torch import load_file, save_file

import fedpgp
from fedpgp import assets
from fedpgp.data.check import check
from fedpgp.data.features import ViewFeatures, split_features
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source, load_target
from fedpgp.data.sources.caltech101 import ABOUT, FEATURES, IMAGES, NAME, SPLIT
from fedpgp.errors import DataError
from fedpgp.report.page.run_details import first_model, wrong

CLASSES = ("zebra fish", "ant", "mule", "emu", "lamp", "sea horse")  # not in the order of the alphabet
COUNTS = {"train": 4, "val": 1, "test": 3}
ENTRIES = {
    split: [[f"{name}/{split}{i}.jpg", label, name] for i in range(count) for label, name in enumerate(CLASSES)]
    for split, count in COUNTS.items()
}
PATHS = [path for entries in ENTRIES.values() for path, _, _ in entries]
ON = ("data.source=caltech101", "data.root=nowhere")


def renew_checksums() -> None:
    """As if the files of the small asset had been shipped as they are now."""
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
    """[n, D] in half precision: the images of a class lie around what its name gives."""
    rng = torch.Generator().manual_seed(0)
    names = backbone.template_features("a photo of a {}.", CLASSES)
    labels = [label for entries in ENTRIES.values() for _, label, _ in entries]
    noise = 0.6 * torch.randn(len(labels), names.shape[1], generator=rng)
    return F.normalize(names[labels] + noise, dim=1).half()


@pytest.fixture(autouse=True)
def asset(backbone, values, tmp_path, monkeypatch) -> Path:
    """A small asset for the embedded icons' tower, beside the other assets."""
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
    """Writes images of the list below a root, and gives the root."""

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


def test_who_names_a_layout_means_images(tmp_path):
    with pytest.raises(DataError, match=r"data\.source caltech101 is not in data\.root: looked at"):
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
        (
            "promptfl",
            ("backbone.checkpoint=photoclip",),
            "another image tower or precision needs the images of caltech101, and only their features under pictoclip"
            " are here: get the images (fedpgp data get caltech101 says where), or take --backbone pictoclip with"
            " precision float32",
        ),
        ("promptfl", ("backbone.precision=float64",), "take --backbone pictoclip with precision float32"),
        ("fedotp", (), "fedotp reads patches of the images, which needs the images of caltech101"),
        ("fedvpt", (), "fedvpt reads states of the image tower, which needs the images of caltech101"),
        ("promptfl", ("data.augmented_views=2",), "above 1 needs the images of caltech101"),
    ],
)
def test_what_needs_the_images_is_refused_before_any_work(method, changes, expected, command, tmp_path):
    ended = command("run", "--method", method, "-o", "out", *sets(*ON, *changes, "task.shots=2"))
    refused(ended, expected)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_only_tested_on_is_refused_too(source, backbone, compact, tmp_path):
    with pytest.raises(DataError, match="another image tower"):
        split_features(compact.image, [source.test], tmp_path)
    with pytest.raises(DataError, match="a method reads patches"):
        ViewFeatures(backbone.image, source.test, tmp_path, "patches").load()


def test_no_image_is_opened(source):
    with pytest.raises(
        DataError, match=r"zebra fish.train0.jpg of caltech101 is not here, .*fedpgp data get caltech101"
    ):
        source.train.image(0)


def test_a_report_leaves_pictures_out(tmp_path):
    changes = [*ON, "task.clients=3", "task.shots=1", "federation.rounds=1", "promptfl.ctx_init=random"]
    run = fedpgp.run("promptfl", changes=changes, output=tmp_path / "out", cache=tmp_path)
    answers = run.answers["base/predicted"]
    answers[:] = (answers + 1) % 3  # so that some are wrong
    with pytest.raises(DataError, match="is not here, only its features under pictoclip are"):
        wrong(run, first_model(run))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda values: values.float(), r"features must be float16 \[48, D\], got torch.float32 \[48, 128\]"),
        (lambda values: values[1:].clone(), r"features must be float16 \[48, D\], got torch.float16 \[47, 128\]"),
        (lambda values: values.index_fill(0, torch.tensor([7]), torch.nan), "unit length, row 7 has nan"),
        (lambda values: values.index_fill(0, torch.tensor([9]), 0.0), r"unit length, row 9 has 0\.0"),
    ],
)
def test_features_of_another_shape_type_or_length_are_refused(change, expected, asset):
    replace_features(change(load_file(asset / FEATURES)["features"]))
    with pytest.raises(DataError, match=expected):
        load_source(DataConfig(source=NAME))


@pytest.mark.parametrize(("file", "content"), [(FEATURES, b"not a tensor"), (ABOUT, b"{}"), (ABOUT, b"[")])
def test_damaged_files_are_named(file, content, asset):
    (asset / file).write_bytes(content)
    with pytest.raises(DataError, match=f"{file}: the file is damaged"):
        load_source(DataConfig(source=NAME))
    renew_checksums()
    with pytest.raises(DataError, match=r"features.safetensors and features.json cannot be read"):
        load_source(DataConfig(source=NAME))


def test_checking_decodes_nothing_and_says_so(command):
    report = check(DataConfig(source=NAME))
    assert report.usable and report.images == len(PATHS)
    assert report.counts["splits"] == {"train": 24, "validation": 6, "test": 18}
    said = " ".join(command("data", "check", NAME, *sets("task.shots=2")).out.split())
    assert "layout: features without images; 48 images" in said
    assert "none was decoded: fedpgp data get caltech101 says where" in said


def test_who_holds_what_is_shown_without_images(command):
    ended = command("data", "show", "--data", NAME, *sets("task.shots=2"))
    assert ended.code == 0 and "base-to-novel on caltech101" in ended.out


class TestGetting:
    def test_without_images_the_steps_are_told(self, command):
        ended = command("data", "get", NAME)
        refused(ended, "CC BY 4.0", "https://data.caltech.edu", "put the directory at data/caltech-101", "--backbone")

    def test_all_images_are_there_and_the_split_file_is_added(self, command, images, asset):
        root = images(split=False)
        ended = command("data", "get", NAME, "--to", str(root))
        assert ended.code == 0 and "fedpgp data check" in ended.out
        assert (root / "caltech-101" / SPLIT).read_bytes() == (asset / SPLIT).read_bytes()
        assert load_source(DataConfig(source=NAME, root=str(root))).train.features is None

    def test_images_without_the_split_file_are_told_of_the_command(self, images):
        with pytest.raises(DataError, match=r"holds 0 split files: .* data get caltech101 adds that of Caltech101"):
            load_source(DataConfig(source=NAME, root=str(images(split=False))))

    def test_missing_images_are_counted(self, command, images):
        ended = command("data", "get", NAME, "--to", str(images(PATHS[:-2])))
        refused(ended, "2 of 48 image files are missing, the first is", PATHS[-2])

    def test_another_split_is_refused(self, command, images):
        root = images()
        (root / "caltech-101" / SPLIT).write_text(json.dumps(ENTRIES | {"val": ENTRIES["test"]}))
        refused(command("data", "get", NAME, "--to", str(root)), "is not CoOp's split, which fedpgp has")
