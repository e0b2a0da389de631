"""Ablations: each setting is the run of its config, equal ones are run once, and what is stopped goes on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import SHORT_RUN

import fedpgp
import fedpgp.ablation
from fedpgp.config import load_config
from fedpgp.directory import locked
from fedpgp.errors import ConfigError, InUseError, OutputError
from fedpgp.grid import cells
from fedpgp.grid.study import read_studies
from fedpgp.report.ablation import picture, table

STUDIES = """
[mu]
"0" = ["fedpgp.mu=0"]
"as it is" = []
"2" = ["fedpgp.mu=2.0"]

[parts]
"no term" = ["fedpgp.mu=0.0"]
"no negative" = ["fedpgp.negative=false"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "studies.toml").write_text(STUDIES)
    return tmp_path / "studies.toml"


def ablate(file: Path, output: Path, cache: Path, **settings) -> fedpgp.ablation.Ablation:
    return fedpgp.ablate(
        **{"file": file, "output": output, "cache": cache, "seeds": 2, "changes": SHORT_RUN, **settings}
    )


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


@pytest.mark.usefixtures("small")
class TestAblation:
    def test_what_it_writes(self, file, tmp_path, cache, monkeypatch):
        made, compare = [], cells.compare
        monkeypatch.setattr(cells, "compare", lambda *a, **k: made.append(k["output"]) or compare(*a, **k))
        found = ablate(file, tmp_path / "out", cache)
        assert len(made) == 4, "the config as it stands, μ = 0 of two studies, μ = 2, and no negative term"
        assert found.settings["mu"]["0"] is found.settings["parts"]["no term"]
        assert found.settings["mu"]["as it is"] is found.standing
        assert found.standing.methods == ["zero-shot", "local", "promptfl", "fedpgp"]
        with (tmp_path / "out/ablation.csv").open() as rows:
            read = list(csv.DictReader(rows))
        assert [(row["study"], row["setting"], row["seed"]) for row in read] == [
            (study, label, seed)
            for study, labels in (("mu", ("0", "as it is", "2")), ("parts", ("no term", "no negative")))
            for label in labels
            for seed in "01"
        ]
        alone = fedpgp.run("fedpgp", 1, changes=[*SHORT_RUN, "fedpgp.mu=2.0"], cache=cache)
        assert float(read[5]["local"]) == alone.results["final"]["local"]
        assert float(read[5]["area"]) == alone.results["final"]["area"]
        for name in ("mu.svg", "mu.png", "parts.svg", "ablation.md", "ablation.tex"):
            assert (tmp_path / "out" / name).stat().st_size > 300
        assert fedpgp.load_ablation(tmp_path / "out").rows == found.rows
        assert json.loads(json.dumps(found.as_json()))["method"] == "fedpgp"

    def test_tables_and_figures(self, file, tmp_path, cache):
        found = ablate(file, tmp_path / "out", cache, studies=["mu"])
        one = table(found, "mu")
        assert [row[0].text for row in one.rows] == ["0", "as it is", "2"]
        assert one.rows[1][-2].text == "as it stands"
        runs = found.of("mu", "2")
        mean, std = (
            np.mean([r.results["final"]["cm"] for r in runs]),
            np.std([r.results["final"]["cm"] for r in runs], ddof=1),
        )
        assert one.rows[2][one.header.index("CM")].text == f"{mean:.1f} ± {std:.1f}"
        change = found.against_standing("mu", "2")["cm"]
        before = np.mean([run.results["final"]["cm"] for run in found.standing.of("fedpgp")])
        assert change.mean == pytest.approx(mean - before, abs=1e-9)
        assert change.low <= change.high
        assert found.against_standing("mu", "as it is") is None
        drawn = picture(found, "mu", "svg").decode()
        for text in ("as it is", "Local", "Novel", "area", "zero-shot CLIP"):
            assert text in drawn

    @pytest.mark.slow
    @pytest.mark.parametrize("at", [0, 2])
    def test_what_is_stopped_goes_on(self, at, file, tmp_path, cache, monkeypatch):
        ablate(file, tmp_path / "whole", cache, seeds=1)
        compare, left = cells.compare, iter(range(at))

        def stopped(*arguments, **settings):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return compare(*arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(cells, "compare", stopped)
            with pytest.raises(KeyboardInterrupt):
                ablate(file, tmp_path / "stopped", cache, seeds=1)
        with pytest.raises(OutputError, match=r"is missing; go on with: fedpgp ablate --resume"):
            fedpgp.load_ablation(tmp_path / "stopped")
        with pytest.raises(OutputError, match=r"exists; .* or go on with: fedpgp ablate --resume"):
            ablate(file, tmp_path / "stopped", cache)
        fedpgp.resume_ablation(tmp_path / "stopped", cache=cache)
        assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")

    def test_finished_ones_are_kept_or_replaced(self, file, tmp_path, cache, monkeypatch):
        ablate(file, tmp_path / "out", cache, seeds=1)
        with monkeypatch.context() as patch:
            patch.setattr(cells, "compare", None)
            fedpgp.resume_ablation(tmp_path / "out", cache=cache)
        with locked(tmp_path / "out"), pytest.raises(InUseError, match="another process"):
            ablate(file, tmp_path / "out", cache, force=True)
        found = ablate(file, tmp_path / "out", cache, seeds=1, studies=["parts"], force=True)
        assert list(found.settings) == ["parts"] and not (tmp_path / "out/mu.svg").exists()

    def test_records_of_something_else_are_refused(self, file, tmp_path, cache):
        with pytest.raises(OutputError, match="holds no ablations"):
            fedpgp.resume_ablation(tmp_path, cache=cache)
        ablate(file, tmp_path / "out", cache, seeds=1, studies=["parts"])
        path = tmp_path / "out/ablation.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "fedpgp": "0.0.9"}))
        with pytest.raises(OutputError, match=r"holds ablations of fedpgp 0.0.9"):
            fedpgp.resume_ablation(tmp_path / "out", cache=cache)
        for damaged in ("[]", "{", json.dumps({**record, "studies": {"../up": {"0": []}}})):
            path.write_text(damaged)
            with pytest.raises((OutputError, ConfigError), match=r"ablation\.json"):
                fedpgp.resume_ablation(tmp_path / "out", cache=cache)


def test_an_unknown_shipped_study_is_told_of_the_nearest_and_no_path_inside_the_package():
    with pytest.raises(ConfigError, match=r"has no study 'muu'; did you mean 'mu'\? known: ") as error:
        read_studies(None, ["muu"])
    assert ".toml" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "holds no study"),
        ("[mu\n", {}, "studies.toml: is not TOML"),
        ("mu = 1\n", {}, r"\[mu\] must be a section"),
        ("[mu]\n", {}, r"\[mu\] must be a section with a setting in each line"),
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
def test_bad_input_is_refused_before_any_work(content, settings, message, tmp_path, cache):
    file = tmp_path / "studies.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ablate(file, tmp_path / "out", cache, **settings)
    assert not (tmp_path / "out").exists()
