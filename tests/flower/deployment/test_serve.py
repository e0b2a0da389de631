"""A running server: when it says that nodes can connect, and which keys it registers."""

import datetime
import time
from collections.abc import Callable

import pytest
from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest
from raising import raises

from fedpgp.config import load_config
from fedpgp.errors import FedPGPError
from fedpgp.flower.deployment import serve
from fedpgp.flower.deployment.gate import Answer
from fedpgp.flower.deployment.layout import FederationLayout, FederationPlan, create
from fedpgp.flower.deployment.local import free_ports
from fedpgp.flower.deployment.node_keys import replace_key, wait_for_registration
from fedpgp.flower.deployment.probe import Probe
from fedpgp.flower.deployment.superlink import control, server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "time is over before a condition held"
        time.sleep(0.1)


def statuses(layout: FederationLayout) -> dict[str, list[str]]:
    """Return the statuses of the nodes by name, in the order of their registration."""
    with control(layout) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    found: dict[str, list[str]] = {}
    for node in sorted(nodes, key=lambda node: datetime.datetime.fromisoformat(node.registered_at)):
        found.setdefault(node.name, []).append(node.status)
    return found


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A federation whose public name and whose proxy do not resolve."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")
    port, inner = free_ports(2)
    config = load_config(None, ["task.clients=2", "federation.engine=deployment"], foreign=True)
    plan = FederationPlan("local", "server.invalid", port, inner, 2, config, "fedpgp", 0)
    return create(tmp_path / "federation", plan)


def test_a_server_registers_new_and_replaced_keys_while_it_runs_and_reports_removed_ones(layout, tmp_path):
    log = tmp_path / "server.log"
    assert not wait_for_registration(layout, layout.server / "node-0.pub")  # the server does not run
    with server(layout, log):
        wait(lambda: "nodes can connect" in log.read_text())
        assert statuses(layout) == {"node-0": ["registered"], "node-1": ["registered"]}  # the check left no node

        assert not replace_key(layout, "node-1")
        assert wait_for_registration(layout, layout.server / "node-1.pub")
        assert replace_key(layout, "node-2")
        assert wait_for_registration(layout, layout.server / "node-2.pub")
        wait(lambda: statuses(layout)["node-1"] == ["unregistered", "registered"])

        with control(layout) as client:
            (node,) = [one for one in client.ListNodes(ListNodesRequest()).nodes_info if one.name == "node-0"]
            client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        (layout.server / "node-2.pub").rename(layout.server / "node-2.revoked")
        (layout.server / "bad.pub").write_text("no key")
        remedies = [f"federate key {layout.directory} node-{client}" for client in (0, 2)]
        wait(lambda: all(text in log.read_text() for text in [*remedies, str(layout.server / "bad.pub")]))
        unknown = Probe(layout.gate.listen, layout.server / "ca.crt").problem()
        assert unknown is not None and "401" in unknown
    with server(layout, log):  # what it knows is not an error
        wait(lambda: log.read_text().count("nodes can connect") == 2)
        assert statuses(layout)["node-1"] == ["unregistered", "registered"]
        replace_key(layout, "node-0")
        assert wait_for_registration(layout, layout.server / "node-0.pub")
    assert "Traceback" not in log.read_text()


def test_a_server_whose_superlink_refuses_a_nodes_request_does_not_say_that_nodes_can_connect(layout, monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 1.0)
    monkeypatch.setattr(serve.Gate, "_forwarded", refuse)
    with raises(FedPGPError, problem="503"):
        serve.run_server(layout.directory, False, pytest.fail)


async def refuse(*arguments: object) -> Answer:
    return Answer(503, [], b"", close=False)
