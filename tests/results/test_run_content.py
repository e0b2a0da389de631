"""Run directories that others wrote: false content is refused in one line that names the file and the field."""

import json
import os
import shutil
import sqlite3
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raising import raises
from safetensors.torch import load_file, save_file

import fedpgp
from fedpgp.errors import FedPGPError, OutputError
from fedpgp.federation.state import MAGIC, State
from fedpgp.results.read import open_state
from fedpgp.runtime import limits
from fedpgp.serving.classifier import model_of
from fedpgp.studies.study import read_record

WRITTEN = Path(__file__).parent.parent / "fixtures" / "run-directories-0.1.0"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def finished(tmp_path):
    return Path(shutil.copytree(WRITTEN / "finished", tmp_path / "finished"))


@pytest.fixture
def unfinished(tmp_path):
    return Path(shutil.copytree(WRITTEN / "unfinished", tmp_path / "unfinished"))


def put(file: Path, place: str, value: object) -> None:
    """Replace a value in a file of JSON, such as task.base_names."""
    content = inner = json.loads(file.read_text())
    *keys, last = place.split(".")
    for key in keys:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        ("method", "../x", "method"),
        ("seed", True, "seed"),
        ("final", [], "final"),
        ("final.local", "62", "final.local"),
        ("final.local", 1e308, "final.local"),
        ("final.base", float("nan"), ""),
        ("path", {}, "path"),
        ("path", [], "path"),
        ("path.0.alpha", 1.0, ""),
        ("path.0.local", None, "path[0].local"),
        ("clients", "x", "clients"),
        ("clients.0.client", 7, ""),
        ("clients.1.classes", [3], "clients[1].classes[0]"),
        ("task.base_names", None, "task.base_names"),
        ("task.base_names", ["x"] * 100_000, "task.base_names"),
        ("task.base_names", ["x"] * 20, "task"),
        ("task.base_names", ["x" * 2000] * 50, "task.base_names[0]"),
        ("task.templates", ["{0.__class__}"], "task"),
        ("task.images.base", 10**9, "task.images.base"),
        ("task.clients", 0, "task.clients"),
        ("shared", {}, "shared.local"),
        ("seconds", -1, "seconds"),
    ],
)
def test_a_false_value_in_the_results_is_named(place, value, field, finished):
    put(finished / "results.json", place, value)
    with raises(OutputError, where=f"{finished / 'results.json'}", remedy="run it again") as caught:
        fedpgp.load_run(finished)
    assert field in caught.value.where and len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("results.json", DEEP, "results.json"),
        ("results.json", "[]", "results.json"),
        ("provenance.json", f'{{"method": {DEEP}}}', "provenance.json"),
        ("provenance.json", "{}", "provenance.json: method"),
        ("rounds.jsonl", '{"round": 1}\n', "rounds.jsonl:1: participants"),
        ("rounds.jsonl", "\xff", "rounds.jsonl:1"),
        ("config.toml", f"x = {DEEP}", "config.toml"),
        ("config.toml", f"[data]\nsource = 0x{'f' * 6000}\n", "config.toml:2"),
        ("config.toml", "[[data]]\n", "config.toml"),
    ],
)
def test_a_file_with_other_content_is_named(name, content, where, finished):
    (finished / name).write_text(content, encoding="utf-8")
    with raises(FedPGPError, where=where) as caught:
        fedpgp.load_run(finished)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "results.json",
        "rounds.jsonl",
        "prompts.safetensors",
        "outcomes.safetensors",
        "answers.safetensors",
    ],
)
def test_pipes_devices_and_large_files_are_not_read(name, finished, monkeypatch):
    file = finished / name
    file.unlink()
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), file.mkdir):
        make()
        with raises(OutputError, where=f"{file}", allowed="a regular file"):
            fedpgp.load_run(finished)
        file.rmdir() if file.is_dir() else file.unlink()
    with file.open("wb") as made:
        made.truncate(max(limits.TENSORS, limits.RECORDS) + 1)
        made.write(struct.pack("<Q", limits.HEADER + 1))
    with raises(OutputError, where=f"{file}", allowed="at most "):
        fedpgp.load_run(finished)


def test_tensors_must_have_the_names_shapes_and_values_of_the_results(finished):
    def changed(name, **tensors):
        whole = load_file(WRITTEN / "finished" / name)
        save_file({**whole, **tensors}, finished / name)

    for name, tensors, where in (
        ("prompts.safetensors", {"private/9/U": torch.ones(1)}, "the name of a tensor"),
        ("prompts.safetensors", {"private/../U": torch.ones(1)}, "the name of a tensor"),
        ("prompts.safetensors", {"shared/x": torch.ones(1, dtype=torch.complex64)}, "the type of shared/x"),
        ("outcomes.safetensors", {"own": torch.ones(3, 5, dtype=torch.uint8)}, "own"),
        ("outcomes.safetensors", {"alphas": torch.tensor([0.5, 1.0], dtype=torch.float64)}, "alphas"),
        ("answers.safetensors", {"base/labels": torch.ones(9, dtype=torch.int16)}, "base/labels"),
        ("answers.safetensors", {"x": torch.ones(9)}, "the names of the tensors"),
    ):
        changed(name, **tensors)
        with raises(OutputError, where=f"{finished / name}: {where}"):
            fedpgp.load_run(finished)
        changed(name)
    changed("answers.safetensors", **{"base/labels": torch.full((1800,), 50, dtype=torch.int16)})
    changed("prompts.safetensors", **{"shared/p_G": torch.full((16, 128), torch.nan)})
    run = fedpgp.load_run(finished)
    with raises(OutputError, where="base/labels", allowed="from 0 to 49", got=[50, 50]):
        run.class_accuracies("base")
    with raises(OutputError, where="shared/p_G", allowed="finite"):
        run.prompts["shared/p_G"]


def test_prompts_of_another_shape_do_not_predict(finished, backbone):
    run = fedpgp.load_run(finished)
    model_of(run, backbone, 2)
    for name, value, client in (
        ("shared/p_G", torch.ones(16, 127), None),
        ("shared/p_G", torch.ones(16, 128, dtype=torch.int32), None),
        ("shared/x", torch.ones(1), None),
        ("private/2/U", torch.ones(16, 5), 2),
        ("kept/2/p_G", torch.ones(3), 2),
    ):
        prompts = {**run.prompts, name: value}
        with raises(OutputError, where="prompts.safetensors", remedy="run it again"):
            model_of(replace(run, prompts=prompts), backbone, client)


def test_a_run_in_the_place_of_another_is_refused(tmp_path):
    place = shutil.copytree(WRITTEN / "sweep" / "fedpgp.mu-0-0.5", tmp_path / "compared")
    fedpgp.load_comparison(place)
    shutil.copytree(place / "fedpgp" / "seed-0", place / "fedpgp" / "seed-1")
    put(place / "plan.json", "seeds", {"fedpgp": [0, 1]})
    with raises(OutputError, where="seed-1", problem="seed 0"):
        fedpgp.load_comparison(place)
    put(place / "fedpgp/seed-1/results.json", "seed", 1)
    assert len(fedpgp.load_comparison(place).runs) == 2
    put(place / "fedpgp/seed-1/results.json", "final.new", 1)
    with raises(OutputError, where="seed-1", problem="other metrics"):
        fedpgp.load_comparison(place)
    for seeds in ({"../fedpgp": [0]}, {"fedpgp": []}, {"fedpgp": [-1]}, {}):
        put(place / "plan.json", "seeds", seeds)
        with raises(OutputError, where="plan.json: seeds"):
            fedpgp.load_comparison(place)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER x AFTER INSERT ON rounds BEGIN DELETE FROM server; END",
        "CREATE VIEW x AS SELECT * FROM origin",
        "DROP TABLE server",
        "INSERT INTO origin SELECT * FROM origin",
        "UPDATE origin SET content = '[[[['",
        "UPDATE origin SET content = json_remove(content, '$.provenance')",
        "UPDATE rounds SET record = json_set(record, '$.participants', 'x')",
    ],
)
def test_a_state_that_fedpgp_did_not_write_is_refused(statement, unfinished):
    open_state(unfinished).close()
    with sqlite3.connect(unfinished / "state.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    with raises(OutputError, where=f"{unfinished / 'state.sqlite'}"):
        fedpgp.load_comparison(unfinished)


def test_a_journal_that_names_another_file_does_not_delete_it(tmp_path):
    file, other = tmp_path / "copy" / "s", tmp_path / "other"
    file.parent.mkdir()
    other.write_text("precious")
    with State.create(tmp_path / "s") as state:
        state._execute("PRAGMA cache_size = 1")
        with state.round():
            state.keep_origin({"x": "x" * 100_000})  # fills the cache, so that the journal is written
            for made in (tmp_path / "s", tmp_path / "s-journal"):
                shutil.copy(made, file.parent)
    name = str(other).encode()
    journal = file.with_name("s-journal")
    with journal.open("ab") as opened:  # as SQLite writes it: a page number, the name, its length and checksum
        page = (1 << 30) // 4096 + 1
        opened.write(struct.pack(">I", page) + name + struct.pack(">II", len(name), sum(name)) + MAGIC)
    with raises(OutputError, where=f"{journal}", problem="names another file"):
        State.open(file)
    assert other.exists()
    sqlite3.connect(file).execute("SELECT count(*) FROM origin").fetchall()
    assert not other.exists(), "without the check, SQLite deletes the file"


def test_pipes_in_place_of_a_state_are_refused(unfinished):
    (unfinished / "state.sqlite").unlink()
    os.mkfifo(unfinished / "state.sqlite")
    with raises(OutputError, where="state.sqlite", allowed="a regular file"):
        fedpgp.load_comparison(unfinished)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("parts.0.axes", {"../../x": {"1": []}}),
        ("parts.0.axes", {"/x": {"1": []}}),
        ("parts.0.name", ".."),
        ("parts.0.mean", "x"),
        ("parts", []),
        ("methods", ["../x"]),
        ("seeds", [1.5]),
    ],
)
def test_the_record_of_a_study_cannot_lead_out_of_its_directory(place, value, tmp_path):
    directory = shutil.copytree(WRITTEN / "sweep", tmp_path / "sweep")
    put(directory / "sweep.json", place, value)
    with raises(OutputError, where=f"{directory / 'sweep.json'}: {place.partition('.')[0]}"):
        read_record(directory, "sweep", to_resume=False)


def test_the_limits_are_in_the_documentation():
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    for name, value in vars(limits).items():
        if name.isupper():
            assert f"| {value:,} | `{name}` |" in text
