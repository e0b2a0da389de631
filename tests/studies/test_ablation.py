"""Ablations: each setting is the run of its config, equal settings are run once, and a stopped ablation continues."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from raising import raises
from tiny import SHORT_RUN, draw_nothing, use_small_source

import fedpgp
import fedpgp.studies
from fedpgp.backbone import Backbone
from fedpgp.config import load_config
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, FedPGPError, InUseError, OutputError
from fedpgp.report.ablation import chart, table
from fedpgp.report.style import rendered
from fedpgp.results.run_store import locked
from fedpgp.studies import cells
from fedpgp.studies.ablation import Ablation
from fedpgp.studies.axes import read_studies

CHANGES = [*SHORT_RUN, "federation.path_points=2"]
STUDIES = """
[mu]
"0" = ["fedpgp.mu=0"]
"as it is" = []
"2" = ["fedpgp.mu=2.0"]

[parts]
"no term" = ["fedpgp.mu=0.0"]
"no negative" = ["fedpgp.negative=false"]
"""


def ablate(file: Path, output: Path, cache: Path, **settings) -> Ablation:
    return fedpgp.ablate(**{"file": file, "output": output, "cache": cache, "seeds": 2, "changes": CHANGES, **settings})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "studies.toml"
    path.write_text(STUDIES)
    return path


@pytest.fixture(scope="module")
def finished(
    file: Path, small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Both studies, run once. Read the directory; change only a copy."""
    directory = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        use_small_source(patch, small_source, backbone)
        draw_nothing(patch)
        ablate(file, directory, cache)
    return directory


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished studies, for a test that changes it."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.suffix in (".safetensors", ".svg", ".md", ".toml") and path.name != "comparison.md"
    }


def test_every_shipped_study_can_be_run():
    studies = read_studies()
    for name in ("bottleneck", "mu", "terms", "shots", "context-length", "initialisation", "participation"):
        assert len(studies[name]) > 1
    for labels in studies.values():
        for changes in labels.values():
            load_config(changes=changes)
    assert list(read_studies(None, ["shots"])) == ["shots"]


def test_files_of_an_ablation(finished, cache, small):
    found, ran = fedpgp.load_ablation(finished), list(finished.rglob("comparison.json"))
    assert len(ran) == 4, "the config as it stands, μ = 0 of two studies, μ = 2, and no negative term"
    assert found.cells["mu", "0"] is found.cells["parts", "no term"]
    assert found.stands("mu", "as it is") and not found.stands("mu", "0")
    assert found.standing.methods == ["zero-shot", "local", "promptfl", "fedpgp"]
    with (finished / "ablation.csv").open() as rows:
        read = list(csv.DictReader(rows))
    assert [(row["study"], row["setting"], row["seed"]) for row in read] == [
        (study, label, seed)
        for study, labels in (("mu", ("0", "as it is", "2")), ("parts", ("no term", "no negative")))
        for label in labels
        for seed in "01"
    ]
    alone = fedpgp.run("fedpgp", 1, changes=[*CHANGES, "fedpgp.mu=2.0"], cache=cache)
    assert float(read[5]["local"]) == alone.results["final"]["local"]
    assert float(read[5]["area"]) == alone.results["final"]["area"]
    for name in ("mu.svg", "mu.png", "parts.svg", "ablation.md", "ablation.tex"):
        assert (finished / name).stat().st_size > 300
    assert json.loads(json.dumps(found.as_json()))["method"] == "fedpgp"


def test_tables_and_figures(finished):
    found = fedpgp.load_ablation(finished)
    one = table(found, "mu")
    assert [row[0].text for row in one.rows] == ["0", "as it is", "2"]
    assert one.rows[1][-2].text == "as it stands"
    values = [run.results["final"]["cm"] for run in found.of("mu", "2")]
    mean = np.mean(values)
    assert one.rows[2][one.header.index("CM")].text == f"{mean:.1f} ± {np.std(values, ddof=1):.1f}"
    change = found.against_standing("mu", "2")["cm"]
    before = np.mean([run.results["final"]["cm"] for run in found.standing.of("fedpgp")])
    assert change.mean == pytest.approx(mean - before, abs=1e-9)
    assert change.low <= change.high
    assert found.against_standing("mu", "as it is") is None
    drawn = rendered(chart(found, "mu"), "svg").decode()
    for text in (
        "as it is",
        "Local",
        "Novel",
        "area: under the curve of the trade-off",
        "Horizontal line: zero-shot, which does not train.",
    ):
        assert text in drawn


@pytest.mark.slow  # takes seconds
def test_force_replaces_an_ablation_and_a_stopped_ablation_continues(file, finished, own, small, cache, monkeypatch):
    draw_nothing(monkeypatch)
    with locked(own), pytest.raises(InUseError):
        ablate(file, own, cache, force=True)
    compare, left = cells.compare, iter(range(2))

    def stopped(*arguments, **settings):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return compare(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "compare", stopped)
        with pytest.raises(KeyboardInterrupt):
            ablate(file, own, cache, force=True)
    assert not (own / "mu.svg").exists()
    with raises(OutputError, where="out", problem="is missing", remedy=f"`fedpgp ablate --resume {own}`"):
        fedpgp.load_ablation(own)
    with pytest.raises(OutputError, match=f"fedpgp ablate --resume {own}"):
        ablate(file, own, cache)
    fedpgp.resume_ablation(own, cache=cache)
    assert files_of(own) == files_of(finished)

    monkeypatch.setattr(cells, "compare", None)  # no finished cell is run again
    assert fedpgp.resume_ablation(own, cache=cache).rows() == fedpgp.load_ablation(own).rows()


def test_missing_damaged_and_older_records_are_refused(own, cache, tmp_path):
    with raises(OutputError, where=str(tmp_path), problem="ablation", remedy="fedpgp ablate"):
        fedpgp.resume_ablation(tmp_path, cache=cache)
    path = own / "ablation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "fedpgp": "0.0.9"}))
    with raises(OutputError, where="out", got="0.0.9"):
        fedpgp.resume_ablation(own, cache=cache)
    for damaged in ("[]", "{", json.dumps({**record, "studies": {"../up": {"0": []}}})):
        path.write_text(damaged)
        with raises(FedPGPError, where="ablation.json"):
            fedpgp.resume_ablation(own, cache=cache)


def test_the_message_about_an_unknown_study_suggests_the_nearest_and_has_no_path_inside_the_package():
    with raises(ConfigError, got="muu", remedy="'mu'") as error:
        read_studies(None, ["muu"])
    assert ".toml" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "settings", "fields"),
    [
        ("", {}, {"where": "studies.toml", "problem": "no study"}),
        ("[mu\n", {}, {"where": "studies.toml", "problem": "TOML"}),
        ("mu = 1\n", {}, {"where": "studies.toml: mu", "got": 1}),
        ("[mu]\n", {}, {"where": "studies.toml: mu", "got": {}}),
        ("[Mu]\n0 = []\n", {}, {"where": "studies.toml", "got": "Mu"}),
        ('["../up"]\n0 = []\n', {}, {"where": "studies.toml", "got": "../up"}),
        ("[mu]\n0 = 3\n", {}, {"where": "studies.toml: mu.'0'", "got": 3}),
        ("[mu]\n0 = []\n", {"studies": ["nu"]}, {"where": "studies.toml", "got": "nu", "remedy": "mu"}),
        (None, {}, {"where": "studies.toml"}),
    ],
)
def test_files_that_are_not_studies_are_refused_before_any_work(content, settings, fields, small, tmp_path, cache):
    file = tmp_path / "studies.toml"
    if content is not None:
        file.write_text(content)
    with raises(ConfigError, **fields):
        ablate(file, tmp_path / "out", cache, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ('[mu]\n0 = ["fedpgp.nu=1"]\n', {}, r"study mu, setting '0': .*fedpgp.nu"),
        ('[mu]\n0 = ["fedpgp.mu=-1"]\n', {}, r"study mu, setting '0': .*fedpgp.mu .*-1"),
        ('[shots]\n99 = ["task.shots=99"]\n', {}, r"study shots, setting '99': .*99"),
        ('[m]\n99 = ["fedpgp.context_length=99"]\n', {}, r"study m, setting '99': .*context.*99"),
        ("[mu]\n0 = []\n", {"method": "fedpg"}, "fedpg"),
        ("[mu]\n0 = []\n", {"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_before_any_work(content, settings, message, small, tmp_path, cache):
    file = tmp_path / "studies.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ablate(file, tmp_path / "out", cache, **settings)
    assert not (tmp_path / "out").exists()
