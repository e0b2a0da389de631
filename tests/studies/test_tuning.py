"""The hyperparameter search: what it may read, that its result is always the same, and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from raising import raises
from tiny import SHORT_RUN, use_small_source

import fedpgp
from fedpgp import assets
from fedpgp.backbone import Backbone
from fedpgp.config import load_config
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, DataError, InUseError, OutputError, TrainingError
from fedpgp.federation import client
from fedpgp.federation.state import State
from fedpgp.methods import METHODS
from fedpgp.results.run_store import locked
from fedpgp.runs import tasks as run_tasks
from fedpgp.studies.tuning import Trial, search
from fedpgp.studies.tuning.space import describe, described_space, search_spaces

CHANGES = SHORT_RUN
SPACE = ["promptfl.learning_rate=0.001..0.5:log"]


def tune(cache: Path, output: Path, **settings):
    settings = {"methods": "promptfl", "trials": 3, "seeds": 1, "search": SPACE, "changes": CHANGES, **settings}
    return fedpgp.tune(cache=cache, output=output, **settings)


def trials_of(directory: Path) -> list[dict]:
    """Return the lines of trials.jsonl in the order of methods and numbers, without times."""
    lines = [json.loads(line) for line in (directory / "trials.jsonl").read_text().splitlines()]
    return sorted(({**line, "seconds": 0} for line in lines), key=lambda line: (line["method"], line["number"]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_toml(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text())


class StoppedError(Exception):
    """Stands for a kill in tests with one process."""


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, left = search.evaluate, iter(range(count))

    def evaluate(*job):
        if next(left, None) is None:
            raise StoppedError
        return evaluated(*job)

    monkeypatch.setattr(search, "evaluate", evaluate)


@pytest.fixture(scope="module")
def searches(
    small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Finished searches by number of trials. Tests read them and change only a copy."""
    directory = tmp_path_factory.mktemp("searches")
    with pytest.MonkeyPatch.context() as patch:
        use_small_source(patch, small_source, backbone)
        for trials in (2, 6):
            tune(cache, directory / str(trials), trials=trials)
    return {trials: directory / str(trials) for trials in (2, 6)}


@pytest.fixture
def own(searches: dict[int, Path], tmp_path: Path) -> Path:
    """A copy of the shorter search, for a test that changes it."""
    return Path(shutil.copytree(searches[2], tmp_path / "out"))


# -------------------------------------------------------------------------------------------------------------- space


def test_every_method_that_learns_has_a_space():
    spaces = search_spaces({name: kind() for name, kind in METHODS.items()})
    assert {name for name, space in spaces.items() if not space} == {"zero-shot"}
    rates = [name for name, space in spaces.items() if "learning_rate" in space]
    assert set(rates) == METHODS.keys() - {"zero-shot"}
    for name in ("promptfl", "local", "fedpgp", "promptprox", "fedplot"):
        assert spaces[name]["learning_rate"] == FloatDistribution(0.01, 0.3, log=True), "methods of a kind are equal"


def test_a_field_may_be_searched_from_the_command_line_and_from_a_file(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text('[fedpgp]\nguidance = ["template", "placeholder"]\nmu = { low = 0.0, high = 2.0 }\n')
    changes = ["fedpgp.bottleneck=1..8", "fedpgp.mu=0.1..1:log", "promptfl.context_length=4,16", "local.ctx_init=a, b"]
    found = search_spaces({name: METHODS[name]() for name in ("fedpgp", "promptfl", "local")}, file, changes)
    assert found["fedpgp"] == {
        "guidance": CategoricalDistribution(["template", "placeholder"]),
        "mu": FloatDistribution(0.1, 1, log=True),
        "bottleneck": IntDistribution(1, 8),
    }
    assert found["promptfl"]["context_length"] == CategoricalDistribution([4, 16])
    assert found["promptfl"]["learning_rate"] == FloatDistribution(0.01, 0.3, log=True), "the rest stays"
    assert found["local"]["ctx_init"] == CategoricalDistribution(["a", "b"])
    for name, space in found.items():
        assert described_space(METHODS[name](), json.loads(json.dumps(describe(space))), "plan") == space


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ("promptfl.mu=0..1", {"where": "promptfl.mu", "got": "mu"}),
        ("promptfl.learning_rates=0..1", {"where": "promptfl.learning_rates", "remedy": "'learning_rate'"}),
        ("promptfl.learning_rate=0.3..0.3", {"where": "promptfl.learning_rate", "got": "0.3..0.3"}),
        ("promptfl.learning_rate=0.3..0.1", {"where": "promptfl.learning_rate", "got": "0.3..0.1"}),
        ("promptfl.learning_rate=0..0.1:log", {"where": "promptfl.learning_rate", "got": 0, "remedy": "log"}),
        ("promptfl.learning_rate=-1..0.1", {"where": "promptfl.learning_rate", "got": -1}),
        ("promptfl.learning_rate=a..b", {"where": "promptfl.learning_rate", "got": "a..b"}),
        ("promptfl.context_length=1.5..4", {"where": "promptfl.context_length", "got": 1.5}),
        ("promptfl.class_token_position=end", {"where": "promptfl.class_token_position", "got": ["end"]}),
        ("promptfl.context_length=1-3", {"got": ["1-3"], "remedy": "1..3"}),
        ("promptfl.learning_rate=1e-3 to 0.1", {"where": "promptfl.learning_rate", "remedy": "1e-3..0.1"}),
        ("promptfl.class_token_position=end,back", {"where": "promptfl.class_token_position", "got": "back"}),
        ("promptfl.learning_rate", {"where": "--search", "got": "promptfl.learning_rate"}),
        ("learning_rate=0..1", {"where": "--search", "got": "learning_rate=0..1"}),
        ("fedpgp.mu=0..1", {"where": "--search", "got": "fedpgp"}),
        ("fedpg.mu=0..1", {"where": "--search", "got": "fedpg"}),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(change, fields, tmp_path, cache):
    with raises(ConfigError, **fields):
        tune(cache, tmp_path / "out", search=[change])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("[promptfl\n", {"problem": "TOML"}),
        ("promptfl = 3\n", {"got": "promptfl", "remedy": "[fedpgp]"}),
        ("[promptfl]\nlearning_rate = 0.1\n", {"got": 0.1}),
        ("[promptfl]\nlearning_rate = { low = 0.1 }\n", {"got": {"low": 0.1}}),
        ("[promptfl]\nlearning_rat = { low = 0.1, high = 1.0 }\n", {"got": "learning_rat"}),
        ("[promtfl]\nlearning_rate = { low = 0.1, high = 1.0 }\n", {"got": "promtfl", "remedy": "'promptfl'"}),
    ],
)
def test_the_error_of_a_file_of_spaces_names_the_file(content, fields, tmp_path, cache):
    (tmp_path / "space.toml").write_text(content)
    with raises(ConfigError, where="space.toml", **fields):
        tune(cache, tmp_path / "out", space=tmp_path / "space.toml", search=[])


def test_a_method_without_a_space_is_named(tmp_path, cache):
    with raises(ConfigError, where="methods", problem="zero-shot", remedy="--search zero-shot"):
        tune(cache, tmp_path / "out", methods=["zero-shot", "promptfl"])


# ------------------------------------------------------------------------------------------------------------- search


@pytest.mark.usefixtures("small")
class TestSearch:
    def test_files_of_a_search(self, cache, tmp_path):
        found = tune(cache, tmp_path / "out", methods=["promptfl", "local"])
        assert [(trial.method, trial.number) for trial in found.trials] == [
            (name, number) for name in ("promptfl", "local") for number in range(3)
        ]
        first, best = found.of("promptfl")[0], found.best("promptfl")
        before = load_config(changes=CHANGES)
        assert first.settings == {name: getattr(before.methods["promptfl"], name) for name in first.settings}
        assert set(first.settings) == {"ctx_init", "learning_rate"}
        assert best.value == max(trial.value for trial in found.of("promptfl"))
        assert all(trial.value == trial.figures["cm"] for trial in found.trials)
        rows = rows_of(tmp_path / "out/trials.csv")
        assert len(rows) == 6 and {row["state"] for row in rows} == {"complete"}
        assert trials_of(tmp_path / "out") == sorted(
            ({**vars(trial), "settings": dict(trial.settings), "seconds": 0} for trial in found.trials),
            key=lambda line: (line["method"], line["number"]),
        )
        tuned = load_config(tmp_path / "out/tuned.toml")
        assert tuned.methods["promptfl"] == replace(before.methods["promptfl"], **best.settings)
        assert (tuned.methods["fedpgp"], tuned.task) == (before.methods["fedpgp"], before.task)
        text = (tmp_path / "out/tuned.toml").read_text()
        assert f"trial {best.number} of 3: CM {best.value:.1f} on validation" in text
        assert tuned.task.evaluate_on == "test", "what was tuned is run on test images"
        run = fedpgp.run("promptfl", config=tmp_path / "out/tuned.toml", cache=cache)
        assert run.config.methods["promptfl"] == tuned.methods["promptfl"]

    def test_a_trial_is_the_run_of_its_settings_on_validation_images(self, cache, tmp_path):
        """Half of the clients, the mean over the seeds, the last round."""
        found = tune(cache, tmp_path / "out", seeds=[3, 5], changes=["task.clients=2", *CHANGES[1:]])
        for trial in found.trials[1:]:
            changes = ["task.clients=1", *CHANGES[1:], "task.evaluate_on=validation"]
            changes += [f"promptfl.{field}={json.dumps(value)}" for field, value in trial.settings.items()]
            runs = [fedpgp.run("promptfl", seed, changes=changes, cache=cache) for seed in (3, 5)]
            for name, value in trial.figures.items():
                assert value == pytest.approx(np.mean([run.results["final"][name] for run in runs]), abs=1e-9)

    def test_a_stopped_search_ends_as_an_uninterrupted_one(self, searches, cache, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_after(5, patch)
            with pytest.raises(StoppedError):
                tune(cache, tmp_path / "stopped", trials=6)
        with (tmp_path / "stopped/trials.jsonl").open("a") as file:
            file.write('{"method": "promptfl", "numb')  # a kill in the middle of a line
        fedpgp.resume_tuning(tmp_path / "stopped", cache=cache)
        assert trials_of(tmp_path / "stopped") == trials_of(searches[6])
        assert read_toml(tmp_path / "stopped/tuned.toml") == read_toml(searches[6] / "tuned.toml")

    def test_added_trials_are_the_trials_of_a_longer_search(self, searches, own, cache):
        again = fedpgp.resume_tuning(own, trials=6, cache=cache)
        assert len(again.trials) == 6
        assert trials_of(own) == trials_of(searches[6])
        with raises(ConfigError, where="trials", got=3, remedy="--trials 6"):
            fedpgp.resume_tuning(own, trials=3, cache=cache)

    def test_proposals_learn_from_finished_trials(self, cache, tmp_path, monkeypatch):
        """If the value grows with the learning rate, later trials have higher rates than the random trials."""

        def evaluate(tuning, name, number, settings, options):
            value = 50 + 10 * np.log10(settings["learning_rate"])
            return Trial(name, number, settings, value, {"cm": value}, 0.0)

        monkeypatch.setattr(search, "evaluate", evaluate)
        rates = [trial.settings["learning_rate"] for trial in tune(cache, tmp_path / "out", trials=40).trials]
        assert np.median(np.log(rates[20:])) > np.median(np.log(rates[1:9])) + 0.5
        assert all(0.001 <= rate <= 0.5 for rate in rates)

    def test_a_failing_trial_is_recorded_and_the_search_continues(self, cache, tmp_path, monkeypatch):
        """The trial fails as with a loss that is not finite."""
        after_step = client._Training.after_step

        def diverges(training):
            if training.job.method.learning_rate > 0.05:
                raise TrainingError("the loss of client 1\nis not finite")
            after_step(training)

        monkeypatch.setattr(client._Training, "after_step", diverges)
        found = tune(cache, tmp_path / "out", trials=6)
        failed = [trial for trial in found.trials if trial.settings["learning_rate"] > 0.05]
        assert 0 < len(failed) < 6
        for trial in failed:
            assert trial.value is None and trial.reason == "the loss of client 1 is not finite"
        assert found.best("promptfl").settings["learning_rate"] <= 0.05
        rows = rows_of(tmp_path / "out/trials.csv")
        assert [row["state"] for row in rows].count("failed") == len(failed)
        assert trials_of(tmp_path / "out")[failed[0].number]["value"] is None

    def test_if_all_trials_fail_the_config_does_not_change(self, cache, tmp_path, monkeypatch):
        def diverges(training):
            raise TrainingError("the loss is not finite")

        monkeypatch.setattr(client._Training, "after_step", diverges)
        found = tune(cache, tmp_path / "out", trials=2)
        assert found.best("promptfl") is None
        assert found.config.methods == found.before.methods

    @pytest.mark.parametrize(
        ("change", "fields"),
        [
            ({"fedpgp": "0.0.9"}, {"got": "0.0.9"}),
            ({"checkpoint": "other"}, {"problem": "checkpoint was other", "remedy": "checkpoint"}),
            ({"images": {"train": "a", "validation": "b"}}, {"problem": "images", "remedy": "images"}),
            ({"code": {"promptfl": "another"}}, {"problem": "code", "remedy": "code"}),
        ],
    )
    def test_a_search_with_another_record_is_refused(self, change, fields, own, cache):
        plan = own / "tuning.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), **change}))
        with raises(OutputError, where="out", **fields):
            fedpgp.resume_tuning(own, cache=cache)

    def test_a_search_on_another_task_is_refused(self, own, cache):
        config = own / "config.toml"
        config.write_text(config.read_text().replace("shots = 4", "shots = 2"))
        with raises(OutputError, where="out", problem="config", remedy="Restore config"):
            fedpgp.resume_tuning(own, cache=cache)

    def test_changed_trials_are_refused(self, own, cache):
        file = own / "trials.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[1]["settings"]["learning_rate"] = 0.123
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with raises(OutputError, where="trials.jsonl", problem="trial 1 of promptfl"):
            fedpgp.resume_tuning(own, cache=cache)
        file.write_text("nonsense\n")
        with raises(OutputError, where="trials.jsonl:1", problem="JSON", remedy="new search"):
            fedpgp.resume_tuning(own, cache=cache)

    def test_a_directory_without_a_search_is_refused(self, cache, tmp_path):
        with raises(OutputError, where=str(tmp_path), problem="tuning", remedy="fedpgp tune"):
            fedpgp.resume_tuning(tmp_path, cache=cache)
        (tmp_path / "tuning.json").write_text('{"seeds": {}}')
        with raises(OutputError, where="tuning.json: fedpgp", remedy="another directory"):
            fedpgp.resume_tuning(tmp_path, cache=cache)

    def test_a_search_is_replaced_only_when_asked(self, cache, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            with pytest.raises(StoppedError):
                tune(cache, tmp_path / "out")
        with pytest.raises(OutputError, match=f"fedpgp tune --resume {tmp_path / 'out'}"):
            tune(cache, tmp_path / "out")
        assert len(tune(cache, tmp_path / "out", trials=1, force=True).trials) == 1
        with pytest.raises(OutputError, match="--force") as finished:
            tune(cache, tmp_path / "out")
        assert "--resume" not in str(finished.value)

    def test_a_second_process_is_refused(self, own, cache):
        with locked(own), pytest.raises(InUseError):
            fedpgp.resume_tuning(own, trials=3, cache=cache)

    def test_too_few_validation_images_of_a_client_are_named(self, small_source, cache, tmp_path, monkeypatch):
        validation = small_source.validation
        kept = np.concatenate([np.flatnonzero(validation.labels == label)[:3] for label in range(6)])
        few = replace(validation, labels=validation.labels[kept], domains=validation.domains[kept])
        scarce = Source("pictograms", small_source.train, few, None, small_source.probe)
        monkeypatch.setattr(run_tasks, "load_source", lambda data, splits: scarce)
        with raises(DataError, where="client 0 (seed 0)", got=9, problem="10 or more"):
            tune(cache, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"trials": 0}, r"trials.*\b0"),
            ({"objective": "acc"}, "objective.*local, base, novel, hm, cm.*'acc'"),
            ({"changes": ["task.protocol=leave-one-domain-out"]}, r"task\.protocol.*'leave-one-domain-out'"),
            ({"seeds": 0}, r"seeds.*\b0"),
        ],
    )
    def test_other_bad_input_is_refused(self, settings, message, cache, tmp_path):
        with pytest.raises(ConfigError, match=message):
            tune(cache, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- test data


QUICK = ["task.clients=4", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]


def test_tuning_asks_for_no_test_image(small, cache, tmp_path, monkeypatch):
    load_source, asked = run_tasks.load_source, []
    monkeypatch.setattr(
        run_tasks, "load_source", lambda data, splits: asked.append(splits) or load_source(data, splits)
    )
    tune(cache, tmp_path / "out", trials=2)
    assert asked == 3 * [("train", "validation")], "for all checks, and for each trial"


@pytest.mark.slow
def test_tuning_in_processes_without_the_test_split_finds_the_same(tmp_path, cache, compact_checkpoint, monkeypatch):
    """The whole program, in a copy of the package without test images."""
    package, changes = tmp_path / "copy" / "fedpgp", [*QUICK, f"backbone.checkpoint={compact_checkpoint}"]
    shutil.copytree(
        str(resources.files("fedpgp")), package, ignore=shutil.ignore_patterns("test.parquet", "__pycache__")
    )
    command = ["tune", "--methods", "promptfl,fedpgp", "--trials", "5", "--seeds", "1", "--workers", "2", "-o", "a"]
    command += ["--cache-dir", str(cache), *(word for change in changes for word in ("--set", change))]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    found = subprocess.run(
        [sys.executable, "-m", "fedpgp", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert "best of 5 trials" in found.stdout
    tune(cache, tmp_path / "here", methods=["promptfl", "fedpgp"], trials=5, search=[], changes=changes)
    assert trials_of(tmp_path / "a") == trials_of(tmp_path / "here")
    assert read_toml(tmp_path / "a/tuned.toml") == read_toml(tmp_path / "here/tuned.toml")
    monkeypatch.setattr(assets, "DIRECTORY", package / "assets")
    with pytest.raises(DataError, match=r"test\.parquet"):
        fedpgp.run("promptfl", changes=changes, cache=cache)


def test_a_kept_state_of_a_trial_is_gone(small, cache, tmp_path, monkeypatch):
    """Each run of a trial has its state in a temporary directory, which is removed."""
    made, create = [], State.create
    monkeypatch.setattr(State, "create", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    tune(cache, tmp_path / "out", trials=2, seeds=2)
    assert len(made) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "config.toml",
        "trials.csv",
        "trials.jsonl",
        "tuned.toml",
        "tuning.json",
    ]


def test_the_error_of_a_missing_optuna_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "fedpgp.studies.tuning")
    with raises(ConfigError, problem="Optuna", remedy='`pip install "fedpgp[tune]"`'):
        import_module("fedpgp.studies.tuning")
