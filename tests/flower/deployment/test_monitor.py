"""The health and the metrics of a server and of a node."""

import json
import socket
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from raising import raises

from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment import monitor, server_monitor
from fedpgp.flower.deployment.diagnosis import LastRun, Node, Problem
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import free_ports
from fedpgp.flower.deployment.monitor import NodeActivity, Report, monitored
from fedpgp.flower.deployment.server_monitor import monitored_server
from fedpgp.flower.deployment.status import FederationStatus

RUN = LastRun("5", "running", "2026-11-30T20:00:00+00:00", "", "fedpgp", 0, "/srv/private/runs/ours", 3, 10)
RUN = RUN.__class__(**{**vars(RUN), "figures": {"local": 61.5}, "participants": [0, 2], "drops": {"train": 2}})
STATUS = FederationStatus(
    federation="ours",
    answers=True,
    checked="2026-11-30T21:00:00+00:00",
    versions={"fedpgp": "0.1.0", "flwr": "1.41.0"},
    clients=2,
    nodes=[
        Node(0, "node-0", "7", "online", None),
        Node(1, "node-1", "8", "offline", None),
        Node(1, "old", "9", "revoked", None),
    ],
    run=RUN,
    certificates={"server.crt": "2126-11-30T21:00:00+00:00"},
    free=1 << 40,
    problems=[Problem("node-1 is offline; secret /srv/private", "Start it")],
)


def get(port, path):
    """Return the status and the body of an answer."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def layout(tmp_path):
    """A federation's files, as far as a monitor reads them, with ports that are free."""
    gate, port = free_ports(2)
    for name, content in (
        ("flwr/config.toml", '[superlink]\ndefault = "ours"\n[superlink.ours]\naddress = "127.0.0.1:1"\n'),
        ("server/gate.toml", f'host = "a"\nlisten = "0.0.0.0:{gate}"\nmonitor = "127.0.0.1:{port}"\n'),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    return FederationLayout(tmp_path)


def test_a_server_is_up_while_its_gate_accepts_connections_and_the_superlink_answers(layout, monkeypatch):
    monkeypatch.setattr(server_monitor, "AGE", 0.0)
    monkeypatch.setattr(server_monitor, "federation_status", lambda layout: status)
    port, status = layout.gate.monitor.rpartition(":")[2], STATUS
    with monitored_server(layout):
        assert get(port, "/health")[0] == 503
        with socket.create_server(("127.0.0.1", int(layout.gate.listen.rpartition(":")[2]))):
            code, body = get(port, "/health")
            assert code == 200
            assert json.loads(body) == {
                **{"status": "up", "nodes_online": 1, "clients": 2, "run": "running", "round": 3, "problems": 1},
                **STATUS.versions,
            }
            _, text = get(port, "/metrics")
            for line in (
                "fedpgp_up 1.0",
                "fedpgp_nodes_online 1.0",
                'fedpgp_node_online{client="1"} 0.0',
                'fedpgp_run_status{run="5",status="running"} 1.0',
                'fedpgp_round{run="5"} 3.0',
                'fedpgp_rounds{run="5"} 10.0',
                'fedpgp_participants{run="5"} 2.0',
                'fedpgp_dropped_total{phase="train",run="5"} 2.0',
                'fedpgp_figure{name="local",run="5"} 61.5',
                'fedpgp_certificate_expires_seconds{certificate="server"} 4.951',
            ):
                assert line in text, (line, text)
            assert "private" not in body + text and "node-1" not in body + text
            status = FederationStatus(**{**vars(STATUS), "certificates": {"server.crt": "2020-01-01T00:00:00+00:00"}})
            assert get(port, "/health")[0] == 503
            status = FederationStatus(**{**vars(STATUS), "answers": False, "nodes": [], "run": None})
            assert get(port, "/health")[0] == 503
        assert get(port, "/")[0] == 404
    with pytest.raises(OSError, match="refused"):
        get(port, "/health")


def test_a_server_whose_files_cannot_be_read_is_down(layout, monkeypatch):
    def unreadable(layout):
        raise OutputError("damaged", where="/srv/private", remedy="Correct it")

    monkeypatch.setattr(server_monitor, "federation_status", unreadable)
    found = server_monitor.of_server(layout)
    assert not found.well and found.health == {"status": "down"}


def test_several_requests_ask_the_superlink_only_once(layout, monkeypatch):
    asked = []
    monkeypatch.setattr(server_monitor, "of_server", lambda layout: asked.append(1) or Report(True, {}, ()))
    with monitored_server(layout):
        for path in ("/health", "/metrics", "/health"):
            assert get(layout.gate.monitor.rpartition(":")[2], path)[0] == 200
    assert len(asked) == 1


@pytest.mark.parametrize("address", ["0.0.0.0:9095", "example.org:9095", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:x"])
def test_the_monitor_of_a_server_listens_only_on_the_loopback_address(layout, address):
    file = layout.server / "gate.toml"
    file.write_text(f'host = "a"\nlisten = "127.0.0.1:1"\nmonitor = "{address}"\n')
    with raises(ConfigError, where=str(file), got=address), monitored_server(layout):
        pass


def test_a_port_that_is_not_free_is_reported(layout):
    host, _, port = layout.gate.monitor.rpartition(":")
    with (
        socket.create_server((host, int(port))),
        raises(ConfigError, where=str(layout.server / "gate.toml"), got=layout.gate.monitor),
        monitored_server(layout),
    ):
        pass


def test_nothing_is_served_unless_it_is_asked_for(layout):
    (layout.server / "gate.toml").write_text('host = "a"\nlisten = "127.0.0.1:1"\n')  # as earlier versions wrote it
    with monitored_server(layout):
        assert layout.gate.monitor == ""
    with monitored("127.0.0.1", 0, "monitor", NodeActivity().report):
        pass


def test_a_node_is_up_while_the_server_answers_it(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now)
    node, kinds = NodeActivity(), iter(["train", "evaluate", None])
    before = {"status": "down", "phase": "connecting", "answered": None, "answers": 0, "failures": 0}
    assert node.report().health == before

    def message(kind, failed=False):
        return SimpleNamespace(metadata=SimpleNamespace(message_type=kind), has_error=lambda: failed)

    @contextmanager
    def connect(address):
        yield address, lambda: (kind := next(kinds)) and (message(kind), "tree"), lambda message, tree: "sent", "others"

    with node.noting(connect)("there") as (address, receive, send, others):
        assert (address, others) == ("there", "others")
        assert receive()[1] == "tree"
        now += monitor.SILENCE + 1  # it does not ask the server while it trains
        assert node.report().well and node.report().health["phase"] == "train"
        assert send(message("train"), "tree") == "sent"
        receive()
        send(message("evaluate", failed=True), "tree")
        health = node.report().health
        assert (health["phase"], health["answers"], health["failures"]) == ("idle", 1, 1)
        assert health["answered"] is not None
        receive()
        now += monitor.SILENCE - 1
        assert node.report().well
        now += 2
    assert not node.report().well
    samples = [sample for metric in node.report().metrics for sample in metric.samples]
    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert values["fedpgp_node_up",] == 0
    assert values["fedpgp_node_answers_total", "train"] == values["fedpgp_node_failures_total", "evaluate"] == 1
