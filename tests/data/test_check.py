"""`fedpgp data`: what it reports about a dataset before a run."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from disk import save
from PIL import Image
from typer.testing import CliRunner

from fedpgp import cli
from fedpgp.data.check import check
from fedpgp.data.settings import DataConfig


@pytest.fixture
def good(tree):
    return tree(
        *(f"{split}/{name}/{i}.png" for split in ("train", "val", "test") for name in ("ant", "bee") for i in "12")
    )


def test_a_good_dataset(good):
    report = check(DataConfig(source=str(good)), shots=2)
    assert report.usable and report.findings == () and report.layout == "split-class-folders"
    assert report.counts["splits"] == {"train": 4, "validation": 4, "test": 4}
    assert report.counts["classes"] == {"ant": 6, "bee": 6} and report.counts["domains"] == {}


def test_findings(good):
    (good / "train/ant/1.png").write_bytes(b"x")
    shutil.copy(good / "train/bee/1.png", good / "test/bee/copy.png")
    shutil.copytree(good / "train/bee", good / "train/n01440764")
    (good / "train/bee/notes.txt").write_text("x")
    report = check(DataConfig(source=str(good)), shots=3, workers=2)
    texts = [finding.text for finding in report.findings]
    assert not report.usable and report.identifiers == ("n01440764",) and report.ignored == {".txt": 1}
    assert any("1 images do not decode" in text and "train/ant/1.png" in text for text in texts)
    assert any("3 of 3 classes" in text and "task.shots" in text for text in texts)
    assert any("no test image" in text and "'n01440764'" in text for text in texts)
    assert any("same pictures in two splits" in text and "test/bee/copy.png (test)" in text for text in texts)
    assert not any("do not decode" in f.text for f in check(DataConfig(source=str(good)), decoded=False).findings)


def test_one_fault_is_reported_once(good):
    (good / "train/cow").mkdir()
    (text,) = [finding.text for finding in check(DataConfig(source=str(good)), shots=2).findings]
    assert "1 of 3 classes" in text and "'cow'" in text


def test_the_same_picture_in_two_classes(good):
    shutil.copy(good / "train/bee/1.png", good / "train/ant/copy.png")
    texts = [finding.text for finding in check(DataConfig(source=str(good)), shots=2).findings]
    (text,) = (text for text in texts if "two classes" in text)
    assert "1 images are the same pictures in two classes" in text
    assert "train/ant/copy.png (ant) = " in text and "train/bee/1.png (bee)" in text


@pytest.mark.parametrize(("brightest", "dark"), [(4095, True), (65535, False)])
def test_images_of_few_bits_in_many_are_nearly_black(tmp_path, brightest, dark):
    for number, name in enumerate(("ant", "bee") * 4):
        (tmp_path / name).mkdir(exist_ok=True)
        values = np.linspace(number, brightest, 16).astype(np.uint16).reshape(4, 4)
        Image.fromarray(values).save(tmp_path / name / f"{number}.png")
    texts = [finding.text for finding in check(DataConfig(source=str(tmp_path))).findings]
    assert any(text.startswith("8 of 8 images have no value above 31 of 255") for text in texts) == dark


def invoke(*arguments, monkeypatch):
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_file", None)
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


def test_the_command(good, tmp_path, monkeypatch):
    done = invoke(
        "check",
        good,
        "--set",
        "task.shots=2",
        "--set",
        "task.clients=1",
        "--set",
        "task.protocol=personalization",
        "--write-names",
        tmp_path / "n.txt",
        monkeypatch=monkeypatch,
    )
    assert done.exit_code == 0, done.output
    assert "split-class-folders" in done.stdout and "a run can use it" in done.stdout
    assert (tmp_path / "n.txt").read_text() == "ant\tant\nbee\tbee\n"
    done = invoke("check", good, "--set", "task.shots=3", "--json", monkeypatch=monkeypatch)
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["usable"] is False and found["findings"][0]["stops"] is True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["task.clients=2"], {"classes": 2, "untrained_classes": ["cat", "dog"], "clients": 2, "images": 4, "most": 2}),
        (
            [
                "task.protocol=personalization",
                "task.partition=natural",
                "task.clients=1",
                "task.new_clients=1",
                "task.shots=0",
            ],
            {"classes": 4, "untrained_classes": [], "clients": 2, "images": 12, "least": 4, "most": 8},
        ),
        (
            ["task.protocol=leave-one-domain-out", "task.clients=1"],
            {"classes": 4, "untrained_classes": [], "untrained_domains": ["sketch"], "images": 8, "least": 8},
        ),
    ],
)
def test_what_a_run_would_use_is_said(changes, expected, tmp_path, monkeypatch):
    lines = ["path,label,client,domain,split"]
    for label in ("ant", "bee", "cat", "dog"):
        for split, owner, domain in (
            ("train", "a", "photo"), ("train", "b", "photo"), ("train", "a", "sketch"),
            ("validation", "a", "photo"), ("validation", "b", "photo"), ("validation", "a", "sketch"),
            ("test", "a", "photo"), ("test", "b", "photo"), ("test", "a", "sketch"),
        ):  # fmt: skip
            save(tmp_path / f"{len(lines)}.png")
            lines.append(f"{len(lines)}.png,{label},{owner},{domain},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    settings = [part for change in ["task.shots=2", *changes] for part in ("--set", change)]
    printed = invoke("check", tmp_path / "list.csv", "--no-decode", *settings, "--json", monkeypatch=monkeypatch)
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)["usage"]
    assert {name: found[name] for name in expected} == expected
    said = " ".join(
        invoke("check", tmp_path / "list.csv", "--no-decode", *settings, monkeypatch=monkeypatch).output.split()
    )
    assert (
        ("cat, dog" in said) == ("use --set task.protocol=personalization" in said) == bool(found["untrained_classes"])
    )


def test_settings_that_a_run_refuses_are_a_finding(good, monkeypatch):
    done = invoke("check", good, "--set", "task.shots=2", monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "base-to-novel needs at least 4 classes" in " ".join(done.stdout.split())
    settings = ("--set", "task.shots=2", "--set", "task.protocol=personalization")
    done = invoke("check", good, *settings, monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "task.clients must be at most 2 " in " ".join(done.stdout.split())


def test_columns_without_a_use_are_reported(tree, monkeypatch):
    root = tree("a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "g.png", "h.png")
    rows = "".join(f"{name}.png,{'ant' if i < 4 else 'bee'},{i % 2},x\n" for i, name in enumerate("abcdefgh"))
    (root / "list.csv").write_text("path,label,hospital,tpyo\n" + rows)
    settings = ("--set", "task.shots=1", "--set", "task.clients=1")
    done = invoke("check", root / "list.csv", *settings, monkeypatch=monkeypatch)
    said = " ".join(done.stdout.split())
    assert "ignored: 8 × column tpyo" in said
    assert "warning: The column of clients" in said and "--set task.partition=natural" in said


def test_bad_images_stop_no_run_that_drops_them(good, monkeypatch):
    (good / "train/ant/1.png").write_bytes(b"")
    settings = ("--set", "task.shots=1", "--set", "task.clients=1", "--set", "task.protocol=personalization")
    assert invoke("check", good, *settings, monkeypatch=monkeypatch).exit_code == 1
    done = invoke("check", good, *settings, "--skip-bad-images", monkeypatch=monkeypatch)
    assert (
        done.exit_code == 0 and "warning: 1 images do not decode" in done.stdout and "They are left out" in done.stdout
    )


def test_a_dataset_that_cannot_be_read_is_a_finding(tree, monkeypatch):
    done = invoke("check", tree("train/1.png", "test/1.png"), monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "without a class" in done.stdout
    save(tree("x/1.png") / "2.png")


def test_a_folder_without_access_is_a_finding(good, monkeypatch):
    scandir = os.scandir

    def scanned(path):
        if str(path).endswith("val/bee"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanned)
    (finding,) = check(DataConfig(source=str(good))).findings
    assert finding.stops and finding.text.startswith(f"{good / 'val' / 'bee'}: this user has no access to it")


def test_names_that_are_not_text_are_findings_and_shown_with_escapes(tree, tmp_path, monkeypatch):
    root = tree("ant/caf\udce9.png", "bee/1.png", "caf\udce9/1.png")
    (root / "ant/caf\udce9.png").write_bytes(b"")
    done = invoke("check", root, "--write-names", tmp_path / "names.txt", monkeypatch=monkeypatch)
    assert done.exit_code == 1, done.exception
    assert r"the class name 'caf\xe9'" in done.stdout
    assert r"ant/caf\xe9.png (it has no supported image format" in done.stdout


def test_layouts(monkeypatch):
    done = invoke("layouts", monkeypatch=monkeypatch)
    assert done.exit_code == 0 and "domain-class-folders" in done.stdout and "webdataset" in done.stdout


def test_data_is_short_for_its_source(monkeypatch, tmp_path):
    import fedpgp

    seen = []
    monkeypatch.setattr(fedpgp, "run", lambda *_, changes, **__: seen.append(changes) or exit(0), raising=False)
    CliRunner().invoke(cli.app, ["run", "-m", "local", "--data", "12", "-o", str(tmp_path / "out")])
    assert fedpgp.load_config(None, seen[0]).data.source == "12"


def test_images_without_folders_get_a_remedy_without_a_layout(tree, monkeypatch):
    done = invoke("check", tree("a.png", "b.png"), monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "layout: none" not in done.stdout
    assert "2 images and no folders" in done.stdout
