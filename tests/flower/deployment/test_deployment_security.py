"""Admission to the server of a federation: a node needs the certificate authority and a known key."""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from gates import running
from raising import raises

from fedpgp.errors import OutputError
from fedpgp.flower.deployment.credentials import check_certificate, write_authority, write_node_key, write_server
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import free_ports
from fedpgp.flower.deployment.processes import SCRIPTS, environment, started
from fedpgp.flower.deployment.serve import run_server
from fedpgp.flower.deployment.superlink import server

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import new_federation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]


@pytest.fixture(scope="module")
def layout():
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        made = new_federation(Path(directory) / "federation", "fedpgp", 2, ["task.clients=2"])
        with server(made, made.directory / "server.log"):
            yield made


def tried(layout: FederationLayout, *options: str) -> str:
    """Return the output of a SuperNode that is not admitted. If its key is refused, Flower ends it with code 0."""
    address = layout.gate.listen
    (port,) = free_ports(1)
    command = [str(SCRIPTS / "flower-supernode"), "--superlink", address, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-retries", "1", "--max-wait-time", "3", "--node-config", "client=0", *options]
    log = layout.directory / f"try-{port}.log"
    home = layout.directory / "node-home"
    with started(command, environment(home), log) as process, contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(40)
    said = log.read_text()
    assert "SuperNode ID" not in said, said
    return said


def with_key(layout: FederationLayout, client: int = 0) -> list[str]:
    return ["--auth-supernode-private-key", str(layout.node(client) / "key")]


def test_a_valid_node_is_admitted(layout):
    address = layout.gate.listen
    (port,) = free_ports(1)
    command = [str(SCRIPTS / "flower-supernode"), "--superlink", address, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--root-certificates", str(layout.node(0) / "ca.crt"), *with_key(layout), "--node-config", "client=0"]
    log = layout.directory / "let-in.log"
    end = time.monotonic() + 60
    with started(command, environment(layout.directory / "node-home"), log) as process:
        while "SuperNode ID" not in log.read_text():  # Flower prints this after the admission
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)


def test_without_the_authoritys_certificate_the_server_is_not_trusted(layout):
    tried(layout, *with_key(layout))


def test_with_another_authority_the_server_is_not_trusted(layout, tmp_path):
    write_authority(tmp_path)
    tried(layout, "--root-certificates", str(tmp_path / "ca.crt"), *with_key(layout))


def test_a_key_that_the_server_does_not_know_is_refused(layout, tmp_path):
    write_node_key(tmp_path / "key", tmp_path / "key.pub")
    authority = ["--root-certificates", str(layout.node(0) / "ca.crt")]
    tried(layout, *authority, "--auth-supernode-private-key", str(tmp_path / "key"))


def test_no_key_is_refused(layout):
    tried(layout, "--root-certificates", str(layout.node(0) / "ca.crt"))


def test_a_client_without_tls_is_refused(layout):
    tried(layout, "--insecure")


def test_an_expired_certificate_starts_no_server_and_no_node_trusts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, ["task.clients=2"])
    write_server(layout.server, layout.directory / "authority", "localhost", days=0)
    with raises(OutputError, where="server.crt", problem="expired"):
        run_server(layout.directory, False, pytest.fail)
    with running(layout.server) as setup:  # a server that does not check its certificate
        file = layout.server / "gate.toml"
        file.write_text(file.read_text().replace(layout.gate.listen, f"127.0.0.1:{setup.port}"))
        tried(layout, "--root-certificates", str(layout.node(0) / "ca.crt"), *with_key(layout))


def test_a_certificate_of_another_authority_or_from_the_future_is_reported(tmp_path):
    import datetime

    layout = new_federation(tmp_path / "federation", "fedpgp", 1, ["task.clients=1"])
    write_authority(tmp_path)
    with raises(OutputError, where="server.crt", problem=str(tmp_path / "ca.crt")):
        check_certificate(layout.server / "server.crt", tmp_path / "ca.crt")
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with raises(OutputError, where="server.crt", problem="clock", remedy="clock"):
        check_certificate(layout.server / "server.crt", layout.server / "ca.crt", yesterday)
    check_certificate(layout.server / "server.crt", layout.server / "ca.crt")
