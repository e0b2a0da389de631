"""A server that is killed or stopped during a run: nothing of it is left, and it starts again without losing work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fedpgp
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import LocalFederation, finished_rounds, local_federation

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import differences, last_round, new_federation, undisturbed

pytestmark = [pytest.mark.by_hand, pytest.mark.xdist_group("federation")]

SETTINGS = ["task.clients=2", "task.shots=4", "federation.rounds=6", "federation.eval_every=6"]
SETTINGS += ["federation.path_points=1", "federation.deadline=600"]
PROGRAMS = ("federate server", "flower-superlink", "flower-superexec", "flwr-serverapp")


def wait(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "time is over before a condition held"
        time.sleep(0.1)


def processes(layout: FederationLayout) -> dict[str, int]:
    """Return the processes of a server by program, without their guardians."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    places = (f"{layout.server}/", f"federate server {layout.directory}")
    found = [line.split(None, 1) for line in listed.splitlines() if any(place in line for place in places)]
    found = [(int(pid), words) for pid, words in found if "guardian.py" not in words]
    return {program: pid for program in PROGRAMS for pid, words in found if program in words}


def end_of(federation: LocalFederation, run: int) -> tuple[str, str]:
    """Wait until a server that was started again answers and a run has ended; return its status."""
    status: list[tuple[str, str]] = []

    def ended() -> bool:
        assert federation.processes["server"].poll() is None, "the server does not start"
        try:
            status[:] = [federation.status(run)]
        except Exception:  # it is starting
            return False
        return status[0][0] == "finished"

    wait(ended)
    return status[0]


def test_a_server_that_is_killed_during_a_run_starts_at_once_and_the_same_run_continues(tmp_path, cache):
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, SETTINGS)
    output = layout.runs / "local"
    with local_federation(layout, 2, str(cache)) as federation:
        for number, victim in ((2, "flower-superlink"), (4, "federate server")):
            run = federation.submit(output)
            wait(lambda number=number: last_round(layout) >= number)
            before = finished_rounds(output)
            running = processes(layout)
            assert list(running) == list(PROGRAMS)
            began = time.monotonic()
            os.kill(running[victim], signal.SIGKILL)
            federation.processes["server"].wait(10)
            assert processes(layout) == {}
            print(f"{victim} was killed: nothing is left after {time.monotonic() - began:.1f} s")
            assert federation.tend() == ["server"]
            assert end_of(federation, run) == ("finished", "failed")
            print(f"the run has ended as failed after {time.monotonic() - began:.1f} s")
            assert finished_rounds(output)[: len(before)] == before
        federation.complete(output, print)
        found = fedpgp.load_run(output)
        assert [record["round"] for record in found.rounds] == [1, 2, 3, 4, 5, 6]
        assert differences(layout, found, undisturbed(found.config, "fedpgp", found, cache)) == []

        federation.submit(layout.runs / "other")
        wait(lambda: "flwr-serverapp" in processes(layout))
        began = time.monotonic()
        federation.processes["server"].terminate()
        federation.processes["server"].wait(10)
        assert processes(layout) == {}
        print(f"SIGTERM: nothing is left after {time.monotonic() - began:.1f} s")
