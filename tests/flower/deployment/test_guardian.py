"""The end of processes and of all their descendants, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedpgp.flower.deployment import processes
from fedpgp.flower.deployment.processes import end_together, started

pytestmark = pytest.mark.slow

# A process that ignores all signals it can ignore, with a chain of children that do the same, each in its own session.
FAMILY = """
import pathlib, os, signal, subprocess, sys, time
directory, left = sys.argv[1:3]
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pathlib.Path(directory, f"{left}-{os.getpid()}").touch()
if int(left):
    command = [sys.executable, "-S", sys.argv[0], directory, str(int(left) - 1)]
    subprocess.Popen(command, start_new_session=True)
time.sleep(600)
"""
HOLDER = """
import os, sys, time
from pathlib import Path
from fedpgp.flower.deployment.processes import end_together, started
with started(sys.argv[1:], os.environ):
    time.sleep(600)
"""
GENERATIONS = 4


def wait(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def family(tmp_path):
    """Return the command of a family, and a function that waits for its members and returns their ids, oldest first."""
    (tmp_path / "family.py").write_text(FAMILY)
    place = tmp_path / "members"
    place.mkdir()

    def members(count: int = GENERATIONS) -> list[int]:
        wait(lambda: len(list(place.iterdir())) == count)
        found = [int(file.name.partition("-")[2]) for file in sorted(place.iterdir(), reverse=True)]
        assert all(map(alive, found))
        return found

    return [sys.executable, "-S", str(tmp_path / "family.py"), str(place), str(GENERATIONS - 1)], members


@pytest.mark.parametrize("logged", [True, False])
def test_descendants_that_ignore_signals_in_their_own_sessions_end_with_the_block(
    family, logged, tmp_path, monkeypatch
):
    command, members = family
    monkeypatch.setattr(processes, "ENDING", 0.2)
    with started(command, os.environ, tmp_path / "log" if logged else None):
        found = members()
    assert not any(map(alive, found))


def test_descendants_end_with_their_parent(family):
    command, members = family
    with started(command, os.environ) as process:
        found = members()
        os.kill(found[0], signal.SIGKILL)
        assert process.wait(30) == 128 + signal.SIGKILL
        assert not any(map(alive, found))


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_descendants_end_when_the_process_that_started_them_is_killed(family, kill):
    command, members = family
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *command], start_new_session=True)
    try:
        found = members()
        kill(holder.pid, signal.SIGKILL)
        wait(lambda: not any(map(alive, found)))
    finally:
        holder.kill()
        holder.wait()


def test_a_process_ends_when_its_guardian_is_killed(family):
    command, members = family
    with started([*command[:-1], "0"], os.environ) as process:
        (found,) = members(1)
        process.kill()
        wait(lambda: not alive(found))


def test_processes_that_end_together_share_one_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ENDING", 1.0)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    logs = [tmp_path / f"{number}.log" for number in range(6)]
    with ExitStack() as stack:
        guardians = [stack.enter_context(started([sys.executable, "-c", code], os.environ, log)) for log in logs]
        wait(lambda: all(log.read_text() for log in logs))
        began = time.monotonic()
        end_together(guardians)
    assert time.monotonic() - began < 4.0  # not six times a second


def test_a_process_gets_sigterm_and_its_exit_code_is_passed_on(tmp_path):
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(1); time.sleep(600)"
    log = tmp_path / "log"
    with started([sys.executable, "-u", "-c", code], os.environ, log) as process:
        wait(log.read_text)
        process.terminate()
        assert process.wait(30) == 7
