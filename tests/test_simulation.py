"""Whole runs on Flower's simulation, with Ray's actors in processes of their own."""

import json
import subprocess
import sys

import pytest
import torch

import fedpgp

pytestmark = pytest.mark.slow

SETTINGS = ["task.shots=4", "task.clients=4", "federation.rounds=2", "federation.path_points=3", "task.new_clients=2"]


def command(*arguments: str, cache) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "fedpgp",
        "run",
        "--method",
        "fedpgp",
        *settings,
        "--cache-dir",
        str(cache),
        *arguments,
    ]


def test_a_simulated_run_is_the_local_one_to_the_bit(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    local = fedpgp.run("fedpgp", 0, changes=SETTINGS, cache=cache)
    simulated = ["--set", "federation.engine=simulation", "--workers", "2", "--json", "--quiet"]
    done = subprocess.run(command("-o", str(tmp_path / "run"), *simulated, cache=cache), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["local"] == local.results["final"]["local"]
    found = fedpgp.load_run(tmp_path / "run")
    same = {name: value for name, value in local.results.items() if name != "seconds"}
    assert same == {name: value for name, value in found.results.items() if name != "seconds"}
    assert sorted(local.prompts) == sorted(found.prompts)
    assert all(torch.equal(value, found.prompts[name]) for name, value in local.prompts.items())
    assert (local.outcomes.base == found.outcomes.base).all()
    assert not (tmp_path / "run" / "clients").exists()  # what each client kept is in prompts.safetensors now


def test_what_cannot_be_simulated_is_said_before_any_work(tmp_path, cache):
    for arguments, says in (
        (("--set", "federation.engine=deployment"), "needs machines: fedpgp federate init"),
        (("--set", "federation.engine=simulation", "--method", "centralized"), "federation.engine must be local"),
        (("--set", "privacy.differential_privacy=central"), "needs Flower: take federation.engine=simulation"),
    ):
        done = subprocess.run(command(*arguments, cache=cache), capture_output=True, text=True)
        assert done.returncode == 2
        assert says in done.stderr
