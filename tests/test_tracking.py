"""What trackers are told, read back with their own readers."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SHORT_RUN
from typer.testing import CliRunner

import fedpgp
from fedpgp import cli
from fedpgp.errors import ConfigError
from fedpgp.tracking import tracker
from fedpgp.tracking.numbers import numbers


@pytest.fixture(autouse=True)
def own_streams(monkeypatch):
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)


class Listening(fedpgp.Silent):
    def __init__(self):
        self.rounds, self.finished = [], []

    def round(self, method, seed, record):
        self.rounds.append((method, seed, dict(record)))

    def finish(self, run):
        self.finished.append(run)


def test_a_reporter_hears_of_every_round_and_every_run(small, cache, tmp_path):
    ear = Listening()
    found = fedpgp.compare(["zero-shot", "fedpgp"], 2, changes=SHORT_RUN, cache=cache, reporter=ear)
    assert [(run.method, run.seed) for run in ear.finished] == [(run.method, run.seed) for run in found.runs]
    assert [record for *_, record in ear.rounds] == [record for run in found.runs for record in run.rounds]
    table = found.table()
    assert table.loc[("fedpgp", "client"), "local"] == pytest.approx(found.mean("fedpgp")["local"][0])
    assert table.loc[("fedpgp", "shared"), "base_std"] == pytest.approx(found.mean("fedpgp", "shared")["base"][1])


def test_numbers_are_all_that_a_record_has_of_them():
    record = {"round": 3, "local": 50.0, "participants": [1], "shared": {"base": 40}, "lost": "why", "flag": True}
    assert numbers(record) == {"local": 50.0, "shared/base": 40.0}


def test_tensorboard_has_every_round(small, cache, tmp_path, monkeypatch):
    arguments = ["run", "--method", "fedpgp", "--track", f"tensorboard:{tmp_path / 'logs'}", "--cache-dir", str(cache)]
    arguments += [part for change in SHORT_RUN for part in ("--set", change)] + ["-o", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(cli.app, [*arguments, "--quiet", "--workers", "1"])
    assert done.exit_code == 0, done.output
    events = EventAccumulator(str(tmp_path / "logs" / "fedpgp" / "seed-0"))
    events.Reload()
    run = fedpgp.load_run(tmp_path / "run")
    told = [(event.step, event.value) for event in events.Scalars("local")]
    assert told == [(record["round"], pytest.approx(record["local"], rel=1e-6)) for record in run.rounds]
    assert events.Scalars("final/area")[0].value == pytest.approx(run.results["final"]["area"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_round_and_the_settings(small, cache, tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = fedpgp.run("fedpgp", 0, changes=SHORT_RUN, cache=cache, reporter=tracker(f"mlflow:{uri}"))
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("fedpgp").experiment_id])
    told = client.get_metric_history(found.info.run_id, "local")
    assert [(one.step, one.value) for one in told] == [(record["round"], record["local"]) for record in run.rounds]
    assert found.data.params["fedpgp.mu"] == str(run.provenance["method"]["mu"])
    assert found.info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_and_sends_nothing(small, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fedpgp.run("fedpgp", 0, changes=SHORT_RUN, cache=cache, reporter=tracker("wandb:trial"))
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    end = time.monotonic() + 30
    while b"final/area" not in written.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)  # another process writes
    content = written.read_bytes()
    for word in (b"fedpgp.mu", b"shared/base", b"final/area"):
        assert word in content


def test_what_is_no_tracker_is_refused():
    for text, message in (("tensorbord:x", "did you mean 'tensorboard'"), ("mlflow:", "must say where")):
        with pytest.raises(ConfigError, match=message):
            tracker(text)
    assert json.dumps(numbers({})) == "{}"
