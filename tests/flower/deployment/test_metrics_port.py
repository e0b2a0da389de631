"""The metrics of a run for Prometheus."""

import socket
from urllib.request import urlopen

import pytest
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.flower.deployment.local import free_ports
from fedpgp.flower.deployment.metrics import exporter

RECORD = {"round": 3, "participants": [0, 2], "local": 61.5, "shared": {"local": 60.0}}
RECORD |= {"dropped": [{"client": 1, "in": "train", "reason": "no reply"}]}


def test_the_last_round_can_be_read_during_the_run_and_not_afterwards():
    (port,) = free_ports(1)
    with exporter(port, "a run") as hear:
        hear({**RECORD, "round": 2})
        hear(RECORD)
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    assert 'fedpgp_round{run="a run"} 3.0' in text
    assert 'fedpgp_participants{run="a run"} 2.0' in text
    assert 'fedpgp_dropped_total{phase="train",run="a run"} 2.0' in text
    assert 'fedpgp_figure{name="local",run="a run"} 61.5' in text
    assert "no reply" not in text
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics")


def test_a_port_that_is_not_free_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with raises(ConfigError, where="federation.metrics_port", got=port), exporter(port, "a run"):
            pass


def test_nothing_is_served_unless_it_is_asked_for():
    with exporter(None, "a run") as hear:
        hear(RECORD)
