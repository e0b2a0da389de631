"""Whole runs on Flower's simulation, with Ray actors in separate processes."""

import json
import subprocess
import sys

import pytest
import torch
from commands import refused, sets

import fedpgp

pytestmark = pytest.mark.xdist_group("federation")

SETTINGS = ["task.shots=4", "task.clients=4", "federation.rounds=2", "federation.path_points=3", "task.new_clients=2"]


@pytest.mark.slow
def test_a_simulated_run_equals_the_local_run_in_every_bit(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    local = fedpgp.run("fedpgp", 0, changes=SETTINGS, cache=cache)
    words = [sys.executable, "-m", "fedpgp", "run", "--method", "fedpgp", "--cache-dir", str(cache)]
    words += [part for setting in (*SETTINGS, "federation.engine=simulation") for part in ("--set", setting)]
    words += ["--workers", "2", "--json", "--quiet", "-o", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["local"] == local.results["final"]["local"]
    found = fedpgp.load_run(tmp_path / "run")
    same = {name: value for name, value in local.results.items() if name != "seconds"}
    assert same == {name: value for name, value in found.results.items() if name != "seconds"}
    assert sorted(local.prompts) == sorted(found.prompts)
    assert all(torch.equal(value, found.prompts[name]) for name, value in local.prompts.items())
    assert (local.outcomes.base == found.outcomes.base).all()
    assert not (tmp_path / "run" / "clients").exists()  # the private parts are in prompts.safetensors


@pytest.mark.parametrize(
    ("setting", "method", "says"),
    [
        ("federation.engine=deployment", "fedpgp", ("fedpgp federate init",)),
        ("federation.engine=simulation", "centralized", ("federation.engine", "local")),
        ("privacy.differential_privacy=central", "fedpgp", ("federation.engine=simulation",)),
    ],
)
def test_settings_that_cannot_be_simulated_are_reported_before_any_work(setting, method, says, command, small):
    refused(command("run", "--method", method, *sets(setting)), *says)


def test_without_ray_the_extra_that_installs_it_is_named(command, small, monkeypatch):
    monkeypatch.setattr("fedpgp.runs.choices.find_spec", lambda package: None if package == "ray" else object())
    ended = command("run", "--method", "fedpgp", *sets("federation.engine=simulation"))
    refused(ended, "federation.engine", 'pip install "fedpgp[simulation]"')
