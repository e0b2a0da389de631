"""A real federation that is watched: its status, health, metrics and logs while a node and the server stop."""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import LocalFederation, free_ports
from fedpgp.flower.deployment.processes import SCRIPTS, environment, started
from fedpgp.flower.deployment.status import FederationStatus, federation_status

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import new_federation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]

SHORT = ["task.clients=2", "task.shots=2", "federation.rounds=1", "federation.path_points=1", "federation.deadline=60"]
PATIENCE = 240.0  # seconds, on a machine with much other work


def wait_for(condition, layout: FederationLayout) -> FederationStatus:
    """Return the first status that fulfils a condition."""
    end = time.monotonic() + PATIENCE
    while not condition(found := federation_status(layout)):
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


def health(port: int) -> tuple[int, dict[str, object]]:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    return new_federation(tmp_path / "federation", "fedpgp", 2, SHORT)


def test_a_watched_federation(layout, cache, tmp_path):
    server_port, node_port = free_ports(2)
    for file, before, after in (
        (layout.server / "gate.toml", 'monitor = ""', f'monitor = "127.0.0.1:{server_port}"'),
        (layout.node(0) / "node.toml", "monitor = 0", f"monitor = {node_port}"),
    ):
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
    assert not federation_status(layout).answers
    layout.logs.mkdir()
    command = [str(SCRIPTS / "fedpgp"), "federate", "server", str(layout.directory), "--log-format", "json"]
    with ExitStack() as stack:
        federation = LocalFederation(layout, stack, str(cache))
        server = stack.enter_context(started(command, environment(layout.flwr), layout.logs / "server.log"))
        wait_for(lambda found: found.answers and len(found.nodes) == 2, layout)
        for node in range(2):
            federation.start(f"node-{node}")
        found = wait_for(lambda found: found.online == 2, layout)
        assert found.problems == [] and found.exit_code == 0
        assert health(server_port)[0] == 200
        assert health(node_port) == (200, health(node_port)[1] | {"status": "up", "phase": "idle"})
        federation.submit(layout.runs / "local")
        found = wait_for(lambda found: found.run is not None and found.run.ended, layout)
        assert found.run is not None and (found.run.status, found.run.round) == ("completed", 1)
        assert [node.fedpgp for node in found.nodes] == [None] * 2  # another version may have replaced it since the run
        assert health(node_port)[1]["answers"] == 3  # a greeting, a round of training and its evaluation
        with urlopen(f"http://127.0.0.1:{server_port}/metrics", timeout=20) as answer:
            assert f'fedpgp_round{{run="{found.run.id}"}} 1.0' in answer.read().decode()
        federation.processes["node-1"].terminate()
        found = wait_for(lambda found: found.online == 1, layout)
        assert found.nodes[1].state == "offline" and found.nodes[1].since is not None
        (problem,) = found.problems
        assert "node-1" in problem.problem and found.exit_code == 1
        server.terminate()
        server.wait(30)
        assert federation_status(layout).exit_code == 2
    records = [json.loads(line) for line in (layout.logs / "server.log").read_text().splitlines()]
    (ended,) = [one for one in records if one["message"].startswith("round 1 of 1: ")]
    assert (ended["source"], ended["run"], ended["round"]) == ("app", found.run.id, "1")
    assert not [one for one in records if "list-nodes" in one["message"]]
    for line in (layout.logs / "node-0.log").read_text().splitlines()[1:]:  # after "loading libraries"
        assert line.startswith("    ") or line[20:25] == "UTC  ", line
