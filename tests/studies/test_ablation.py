"""Ablations: each setting is the run of its config, equal ones are run once, and what is stopped goes on."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import SHORT_RUN, draw_nothing, use_small_source

import fedpgp
import fedpgp.studies
from fedpgp.backbone import Backbone
from fedpgp.config import load_config
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, InUseError, OutputError
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


def test_what_it_writes(finished, cache, small):
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
    for text in ("as it is", "Local", "Novel", "area", "zero-shot CLIP"):
        assert text in drawn


def test_it_replaces_only_when_asked_and_what_is_stopped_goes_on(file, finished, own, small, cache, monkeypatch):
    draw_nothing(monkeypatch)
    with locked(own), pytest.raises(InUseError, match="another process"):
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
    with pytest.raises(OutputError, match=r"is missing; go on with: fedpgp ablate --resume"):
        fedpgp.load_ablation(own)
    with pytest.raises(OutputError, match=r"exists; .* or go on with: fedpgp ablate --resume"):
        ablate(file, own, cache)
    fedpgp.resume_ablation(own, cache=cache)
    assert files_of(own) == files_of(finished)

    monkeypatch.setattr(cells, "compare", None)  # finished ones are kept
    assert fedpgp.resume_ablation(own, cache=cache).rows() == fedpgp.load_ablation(own).rows()


def test_records_of_something_else_are_refused(own, cache, tmp_path):
    with pytest.raises(OutputError, match="holds no ablation; name a directory that fedpgp ablate wrote"):
        fedpgp.resume_ablation(tmp_path, cache=cache)
    path = own / "ablation.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "fedpgp": "0.0.9"}))
    with pytest.raises(OutputError, match=r"was begun with fedpgp 0\.0\.9"):
        fedpgp.resume_ablation(own, cache=cache)
    for damaged in ("[]", "{", json.dumps({**record, "studies": {"../up": {"0": []}}})):
        path.write_text(damaged)
        with pytest.raises((OutputError, ConfigError), match=r"ablation\.json"):
            fedpgp.resume_ablation(own, cache=cache)


def test_an_unknown_shipped_study_is_told_of_the_nearest_and_no_path_inside_the_package():
    with pytest.raises(ConfigError, match=r"has no study 'muu'; did you mean 'mu'\? known: ") as error:
        read_studies(None, ["muu"])
    assert ".toml" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "holds no study"),
        ("[mu\n", {}, "studies.toml: is not TOML"),
        ("mu = 1\n", {}, r"studies.toml: mu must be a table with a list of changes for each label, got 1"),
        ("[mu]\n", {}, r"studies.toml: mu must be a table with a list of changes for each label, got {}"),
        ("[Mu]\n0 = []\n", {}, "small letters, digits and hyphens, got 'Mu'"),
        ('["../up"]\n0 = []\n', {}, "small letters, digits and hyphens"),
        ("[mu]\n0 = 3\n", {}, "mu.'0' must be a list of changes"),
        ('[mu]\n0 = ["fedpgp.nu=1"]\n', {}, r"study mu, setting '0': .*fedpgp.nu is not a key"),
        ('[mu]\n0 = ["fedpgp.mu=-1"]\n', {}, r"study mu, setting '0': .*fedpgp.mu .*greater"),
        ('[shots]\n99 = ["task.shots=99"]\n', {}, r"study shots, setting '99': .*99"),
        ('[m]\n99 = ["fedpgp.context_length=99"]\n', {}, r"study m, setting '99': a context of fedpgp must have"),
        ("[mu]\n0 = []\n", {"studies": ["nu"]}, "has no study 'nu'; known: mu"),
        ("[mu]\n0 = []\n", {"method": "fedpg"}, "fedpg"),
        ("[mu]\n0 = []\n", {"seeds": 0}, "seeds"),
        (None, {}, "cannot be read"),
    ],
)
def test_bad_input_is_refused_before_any_work(content, settings, message, small, tmp_path, cache):
    file = tmp_path / "studies.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ablate(file, tmp_path / "out", cache, **settings)
    assert not (tmp_path / "out").exists()
