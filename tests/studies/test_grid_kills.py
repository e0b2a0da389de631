"""A grid that is killed three times at random writes the same tables as an uninterrupted grid."""

import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.by_hand

GRID = ["--grid", "fedpgp.mu=0.1,1.0", "--methods", "promptfl,fedpgp", "--seeds", "2"]
SMALL = ["task.clients=5", "federation.rounds=3", "federation.local_epochs=1", "federation.path_points=2"]
TABLES = ("sweep.csv", "sweep.md", "sweep.tex")


def fedpgp(*arguments, cache):
    command = [
        sys.executable,
        "-m",
        "fedpgp",
        "sweep",
        *arguments,
        "--workers",
        "1",
        "--cache-dir",
        str(cache),
        "--quiet",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_a_grid_killed_three_times_ends_in_the_same_tables(tmp_path):
    cache, arguments = tmp_path / "cache", [*GRID, *(part for change in SMALL for part in ("--set", change))]
    started = time.monotonic()
    finished(fedpgp(*arguments, "-o", str(tmp_path / "whole"), cache=cache))
    finished(fedpgp(*arguments, "-o", str(tmp_path / "again"), cache=cache))  # time without encoding images
    seconds = (time.monotonic() - started) / 2
    killed, draws = tmp_path / "killed", random.Random(0)
    kills = 0
    while kills < 3:
        resuming = (killed / "sweep.json").exists()
        process = fedpgp(*(["--resume", str(killed)] if resuming else [*arguments, "-o", str(killed)]), cache=cache)
        try:
            process.communicate(timeout=draws.uniform(0.2, 0.5) * seconds)
            break  # the grid finished before the kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills, "nothing was killed"
    if (killed / "sweep.json").exists():
        finished(fedpgp("--resume", str(killed), cache=cache))
    else:
        finished(fedpgp(*arguments, "-o", str(killed), cache=cache))
    for table in TABLES:
        assert (killed / table).read_bytes() == (tmp_path / "whole" / table).read_bytes(), table
