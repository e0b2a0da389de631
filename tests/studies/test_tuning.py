"""The search for settings: what it may read, that it is the same however it is run, and what it refuses."""

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
    """What is kept of the trials in the order of their numbers, without times."""
    lines = [json.loads(line) for line in (directory / "trials.jsonl").read_text().splitlines()]
    return sorted(({**line, "seconds": 0} for line in lines), key=lambda line: (line["method"], line["number"]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_toml(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text())


class StoppedError(Exception):
    """What stands for a kill inside one process."""


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
    """Finished searches by their number of trials. Read them; change only a copy."""
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


def test_every_method_that_learns_has_a_space_and_its_first_trial_may_lie_outside():
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
    ("change", "message"),
    [
        ("promptfl.mu=0..1", "promptfl.mu is not a setting of promptfl"),
        ("promptfl.learning_rates=0..1", "did you mean 'learning_rate'"),
        ("promptfl.learning_rate=0.3..0.3", "low below high, got 0.3 to 0.3: the range is empty"),
        ("promptfl.learning_rate=0.3..0.1", "the range is empty"),
        ("promptfl.learning_rate=0..0.1:log", "begin above 0 to be searched by its logarithm"),
        ("promptfl.learning_rate=-1..0.1", "promptfl.learning_rate .*greater than"),
        ("promptfl.learning_rate=a..b", "from a number to a number, got 'a' to 'b'"),
        ("promptfl.context_length=1.5..4", "promptfl.context_length .*integer"),
        ("promptfl.class_token_position=end", r"at least two choices, one,two, or a range, low\.\.high, got \['end'\]"),
        ("promptfl.context_length=1-3", r"or a range, 1\.\.3, got \['1-3'\]"),
        ("promptfl.learning_rate=1e-3 to 0.1", r"or a range, 1e-3\.\.0\.1, got"),
        ("promptfl.class_token_position=end,back", "promptfl.class_token_position"),
        ("promptfl.learning_rate", "must have the form method.field=low..high"),
        ("learning_rate=0..1", "must have the form method.field=low..high"),
        ("fedpgp.mu=0..1", "fedpgp is none of the methods that are tuned"),
        ("fedpg.mu=0..1", "fedpg is none of the methods that are tuned"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(change, message, tmp_path, cache):
    with pytest.raises(ConfigError, match=message):
        tune(cache, tmp_path / "out", search=[change])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[promptfl\n", "space.toml: is not TOML"),
        ("promptfl = 3\n", "promptfl must stand in the section of a method"),
        ("[promptfl]\nlearning_rate = 0.1\n", r"must be a list of choices or \{ low, high, log \}, got 0.1"),
        ("[promptfl]\nlearning_rate = { low = 0.1 }\n", "must be a list of choices or"),
        ("[promptfl]\nlearning_rat = { low = 0.1, high = 1.0 }\n", "space.toml: promptfl.learning_rat is not"),
        ("[promtfl]\nlearning_rate = { low = 0.1, high = 1.0 }\n", "space.toml: promtfl is no method"),
    ],
)
def test_a_file_of_spaces_with_a_fault_is_named(content, message, tmp_path, cache):
    (tmp_path / "space.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        tune(cache, tmp_path / "out", space=tmp_path / "space.toml", search=[])


def test_a_method_without_a_space_is_named(tmp_path, cache):
    with pytest.raises(ConfigError, match="nothing is searched of zero-shot"):
        tune(cache, tmp_path / "out", methods=["zero-shot", "promptfl"])


# ------------------------------------------------------------------------------------------------------------- search


@pytest.mark.usefixtures("small")
class TestSearch:
    def test_what_a_search_writes(self, cache, tmp_path):
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

    def test_a_stopped_search_ends_as_one_that_was_not(self, searches, cache, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_after(5, patch)
            with pytest.raises(StoppedError):
                tune(cache, tmp_path / "stopped", trials=6)
        with (tmp_path / "stopped/trials.jsonl").open("a") as file:
            file.write('{"method": "promptfl", "numb')  # a kill amid a line
        fedpgp.resume_tuning(tmp_path / "stopped", cache=cache)
        assert trials_of(tmp_path / "stopped") == trials_of(searches[6])
        assert read_toml(tmp_path / "stopped/tuned.toml") == read_toml(searches[6] / "tuned.toml")

    def test_more_trials_are_those_of_a_longer_search(self, searches, own, cache):
        again = fedpgp.resume_tuning(own, trials=6, cache=cache)
        assert len(again.trials) == 6
        assert trials_of(own) == trials_of(searches[6])
        with pytest.raises(ConfigError, match="trials must be at least 6"):
            fedpgp.resume_tuning(own, trials=3, cache=cache)

    def test_proposals_learn_from_what_was_found(self, cache, tmp_path, monkeypatch):
        """Where the value grows with the rate, later trials lie higher than those that are drawn."""

        def evaluate(tuning, name, number, settings, options):
            value = 50 + 10 * np.log10(settings["learning_rate"])
            return Trial(name, number, settings, value, {"cm": value}, 0.0)

        monkeypatch.setattr(search, "evaluate", evaluate)
        rates = [trial.settings["learning_rate"] for trial in tune(cache, tmp_path / "out", trials=40).trials]
        assert np.median(np.log(rates[20:])) > np.median(np.log(rates[1:9])) + 0.5
        assert all(0.001 <= rate <= 0.5 for rate in rates)

    def test_a_failing_trial_is_recorded_and_the_search_goes_on(self, cache, tmp_path, monkeypatch):
        """As a loss that is not finite would end it."""
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

    def test_where_all_trials_fail_the_config_stays(self, cache, tmp_path, monkeypatch):
        def diverges(training):
            raise TrainingError("the loss is not finite")

        monkeypatch.setattr(client._Training, "after_step", diverges)
        found = tune(cache, tmp_path / "out", trials=2)
        assert found.best("promptfl") is None
        assert found.config.methods == found.before.methods

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fedpgp": "0.0.9"}, r"was begun with fedpgp 0\.0\.9"),
            ({"checkpoint": "other"}, "with checkpoint other"),
            ({"images": {"train": "a", "validation": "b"}}, "with images"),
            ({"code": {"promptfl": "another"}}, "with code"),
        ],
    )
    def test_a_search_of_something_else_is_refused(self, change, message, own, cache):
        plan = own / "tuning.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), **change}))
        with pytest.raises(OutputError, match=message):
            fedpgp.resume_tuning(own, cache=cache)

    def test_a_search_on_another_task_is_refused(self, own, cache):
        config = own / "config.toml"
        config.write_text(config.read_text().replace("shots = 4", "shots = 2"))
        with pytest.raises(OutputError, match=r"with config .*: go on with what it was begun with"):
            fedpgp.resume_tuning(own, cache=cache)

    def test_changed_trials_are_refused(self, own, cache):
        file = own / "trials.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[1]["settings"]["learning_rate"] = 0.123
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(OutputError, match="trial 1 of promptfl has other settings"):
            fedpgp.resume_tuning(own, cache=cache)
        file.write_text("nonsense\n")
        with pytest.raises(OutputError, match=r"trials.jsonl is damaged"):
            fedpgp.resume_tuning(own, cache=cache)

    def test_a_directory_without_a_search_is_refused(self, cache, tmp_path):
        with pytest.raises(OutputError, match="holds no tuning; name a directory that fedpgp tune wrote"):
            fedpgp.resume_tuning(tmp_path, cache=cache)
        (tmp_path / "tuning.json").write_text('{"seeds": {}}')
        with pytest.raises(OutputError, match=r"tuning\.json is damaged"):
            fedpgp.resume_tuning(tmp_path, cache=cache)

    def test_a_search_is_replaced_only_when_asked(self, cache, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            with pytest.raises(StoppedError):
                tune(cache, tmp_path / "out")
        with pytest.raises(OutputError, match=r"exists; .* or go on with: fedpgp tune --resume"):
            tune(cache, tmp_path / "out")
        assert len(tune(cache, tmp_path / "out", trials=1, force=True).trials) == 1
        with pytest.raises(OutputError, match=r"with --force$"):
            tune(cache, tmp_path / "out")

    def test_a_second_process_is_refused(self, own, cache):
        with locked(own), pytest.raises(InUseError, match="another process works on it"):
            fedpgp.resume_tuning(own, trials=3, cache=cache)

    def test_too_few_validation_images_of_a_client_are_named(self, small_source, cache, tmp_path, monkeypatch):
        validation = small_source.validation
        kept = np.concatenate([np.flatnonzero(validation.labels == label)[:3] for label in range(6)])
        few = replace(validation, labels=validation.labels[kept], domains=validation.domains[kept])
        scarce = Source("pictograms", small_source.train, few, None, small_source.probe)
        monkeypatch.setattr(run_tasks, "load_source", lambda data, splits: scarce)
        with pytest.raises(DataError, match=r"client 0 \(seed 0; .+\) has 9 validation images, .* at least 10"):
            tune(cache, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"trials": 0}, "trials must be 1 or more, got 0"),
            ({"objective": "acc"}, "objective must be one of local, base, novel, hm, cm, got 'acc'"),
            ({"changes": ["task.protocol=leave-one-domain-out"]}, "must be base-to-novel to choose settings"),
            ({"seeds": 0}, "seeds"),
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
    """The whole program, in a copy of the package that holds no test image."""
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
    with pytest.raises(DataError, match=r"test\.parquet is missing"):
        fedpgp.run("promptfl", changes=changes, cache=cache)


def test_a_kept_state_of_a_trial_is_gone(small, cache, tmp_path, monkeypatch):
    """Each run of a trial has its state in a temporary place, and nothing of it stays."""
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


def test_a_missing_optuna_is_said_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "fedpgp.studies.tuning")
    with pytest.raises(ConfigError, match=r'needs Optuna, which is missing: pip install "fedpgp\[tune\]"'):
        import_module("fedpgp.studies.tuning")
