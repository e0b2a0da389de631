"""Live nodes whose apps' processes are killed: they answer after seconds, and no result changes."""

import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import fedpgp
from fedpgp.flower.deployment import app_process
from fedpgp.flower.deployment.local import local_federation

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import differences, new_federation, undisturbed

SETTINGS = ["task.clients=2", "task.shots=4", "federation.rounds=2", "federation.path_points=1"]
LISTENING = "0A"  # a state in /proc/net/tcp


def descendants(process: int) -> list[int]:
    """Return the ids of the processes that a process started, and that these started, and so on."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = place.read_text().rpartition(")")[2].split()[1]
            parents.setdefault(int(parent), []).append(int(place.parent.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def words(process: int) -> list[str]:
    """Return the command line of a process; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return []


def app_processes(node: int) -> list[int]:
    """Return the processes of a node that run an app: the children of the process from which they are forked."""
    sources = [one for one in descendants(node) if any("multiprocessing.forkserver" in word for word in words(one))]
    return [one for source in sources for one in descendants(source)]


def listening_ports(process: int) -> list[int]:
    """Return the TCP ports on which a process listens."""
    sockets = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            sockets |= set(re.findall(r"socket:\[(\d+)\]", str(file.readlink())))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == LISTENING and line[9] in sockets]


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_process_whose_start_fails_or_is_interrupted_is_not_ended(monkeypatch, error):
    def start(process):
        started.append(process)
        raise error

    started = []
    monkeypatch.setattr(app_process.PROCESSES.Process, "start", start)
    with nullcontext() if error is OSError else pytest.raises(SystemExit):
        assert app_process._in_a_process([b""], 1.0) is None
    assert len(started) == (app_process.TRIES if error is OSError else 1)


@pytest.mark.slow
@pytest.mark.xdist_group("federation")
def test_a_killed_app_is_started_again_within_seconds_and_no_process_has_a_token_or_a_port(tmp_path, cache):
    """In every second process, the app of node 1 is killed as soon as the process is seen."""
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, [*SETTINGS, "federation.deadline=300"])
    ended, seen, killed, waited = threading.Event(), list[int](), list[float](), list[float]()
    commands: set[str] = set()
    ports: set[int] = set()

    def disturb(node: int) -> None:
        while not ended.wait(0.003):
            for process in app_processes(node):
                if process in seen:
                    continue
                seen.append(process)
                if len(seen) % 2:
                    os.kill(process, signal.SIGKILL)
                    killed.append(time.monotonic())
                else:
                    waited.append(time.monotonic() - killed[-1])
                    for one in (process, *descendants(node)):
                        commands.update(words(one))
                        with suppress(OSError):
                            ports.update(listening_ports(one))

    with local_federation(layout, 2, str(cache)) as federation:
        thread = threading.Thread(target=disturb, args=(federation.processes["node-1"].pid,), daemon=True)
        thread.start()
        federation.complete(layout.runs / "local", pytest.fail)
        ended.set()
        thread.join()
    run = fedpgp.load_run(layout.runs / "local")
    assert len(killed) >= 5  # the greeting, and training and evaluation of two rounds
    assert max(waited) < 10  # 0.1 s on idle cores; Flower's own SuperNode needs 30 s or more
    assert [record["participants"] for record in run.rounds] == [[0, 1]] * 2
    assert not any("dropped" in record for record in run.rounds)
    assert differences(layout, run, undisturbed(run.config, "fedpgp", run, cache)) == []
    assert (layout.logs / "node-1.log").read_text().count("ended with code -9 before it answered") == len(killed)
    assert not any("token" in word for word in commands)
    assert ports == set()
    print(f"from the kill to the next process: {max(waited):.2f} s at most")
