"""The files of `fedpgp federate`, and checks before a start, without a server."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import refused
from raising import raises

from fedpgp.cli.federate.processes import _round_summary
from fedpgp.errors import OutputError
from fedpgp.flower.deployment.credentials import check_certificate, write_authority, write_server
from fedpgp.flower.deployment.gate import Limits
from fedpgp.flower.deployment.layout import FederationLayout, renew
from fedpgp.flower.deployment.local import finished_rounds, free_ports
from fedpgp.flower.deployment.node_directory import NodeDirectory
from fedpgp.flower.deployment.processes import environment


@pytest.fixture
def layout(command):
    assert command("federate", "init", "ours", "--nodes", "2", "--monitor-port", "0").code == 0
    return FederationLayout(Path("ours").absolute())


def test_nodes_reach_the_gate_and_only_the_server_reaches_its_superlink(command):
    options = ("--host", "server.example.org", "--port", "443", "--superlink-port", "9100")
    assert command("federate", "init", "ours", "--nodes", "2", *options).code == 0
    layout = FederationLayout(Path("ours").absolute())
    assert layout.connection.address == "127.0.0.1:9100"
    gate = layout.gate
    assert (gate.host, gate.listen, gate.address) == ("server.example.org", "0.0.0.0:443", "server.example.org:443")
    assert NodeDirectory.read(layout.node(1)).superlink == "server.example.org:443"
    assert "listen 443 ssl" in (layout.server / "nginx.conf").read_text()
    in_container = tomllib.loads((layout.directory / "compose" / "config.toml").read_text())["superlink"]["ours"]
    assert in_container == {"address": "127.0.0.1:9100", "root-certificates": "/federation/server/ca.crt"}
    ended = command("federate", "init", "other", "--nodes", "2", "--port", "9092")
    refused(ended, "--superlink-port", "--port", "9092")


def test_for_one_machine_the_gate_listens_on_the_loopback_address(layout):
    assert layout.gate.listen == "127.0.0.1:8000"


def test_a_server_starts_only_as_it_was_written_and_with_a_superlink_on_the_loopback_address(layout, command):
    refused(command("federate", "server", "ours", "--insecure"), "ours", "without --insecure")
    assert command("federate", "init", "open", "--nodes", "2", "--insecure", "--monitor-port", "0").code == 0
    refused(command("federate", "server", "open"), "open", "with --insecure")
    gate, file = layout.server / "gate.toml", layout.flwr / "config.toml"
    gate.write_text(gate.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{free_ports(1)[0]}"))
    file.write_text(file.read_text().replace("127.0.0.1", "0.0.0.0"))
    refused(command("federate", "server", "ours"), str(file), "loopback address", "0.0.0.0:9092")


@pytest.mark.parametrize(
    ("settings", "protection"),
    [
        ((), True),
        (("federation.protection=false",), False),
        (("federation.protection=true", "federation.examples=[40,60,50]"), True),
        (("privacy.secure_aggregation=true",), False),
        (("privacy.differential_privacy=central",), False),
        (("federation.aggregator=median",), True),
    ],
)
def test_a_federation_is_protected_unless_a_setting_excludes_it(command, settings, protection):
    options = [text for setting in settings for text in ("--set", setting)]
    assert command("federate", "init", "ours", "--nodes", "3", *options).code == 0
    for place in ("app/federation", "nodes/node-0"):
        written = tomllib.loads((Path("ours") / place / "experiment.toml").read_text())
        assert written["federation"]["protection"] is protection


def test_a_federation_whose_protection_cannot_work_is_refused_when_it_is_made(command):
    def init(*settings):
        options = [text for setting in settings for text in ("--set", setting)]
        return command("federate", "init", "ours", "--nodes", "5", *options)

    refused(init("federation.aggregator=trimmed-mean"), "no hostile client", "--set trimmed-mean.trim=0.2")
    refused(init("privacy.secure_aggregation=true", "federation.protection=true"), "federation.protection=false")
    refused(init("federation.examples=[1,2]"), "federation.examples", "5 numbers")
    assert not Path("ours").exists()


def test_the_nginx_file_forwards_bodies_of_the_gates_size_to_the_gate_only(layout):
    text = (layout.server / "nginx.conf").read_text()
    assert f"client_max_body_size {Limits().body >> 20}m;" in text
    assert re.findall(r"proxy_pass (\S+);", text) == ["https://gate"]
    assert "proxy_request_buffering off;" in text
    assert text.count("{") == text.count("}")


def test_only_the_owner_can_read_keys(layout):
    keys = [layout.server / "server.key", layout.directory / "authority" / "ca.key", *layout.directory.rglob("key")]
    assert len(keys) == 4
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_a_renewed_certificate_is_trusted_by_the_nodes_as_the_old_one_was(layout, tmp_path, command):
    safe = shutil.move(layout.directory / "authority", tmp_path / "safe")
    server, trusted = layout.server / "server.crt", layout.node(0) / "ca.crt"
    write_server(layout.server, safe, "localhost", days=0)
    with raises(OutputError, where=str(server), remedy="fedpgp federate renew"):
        check_certificate(server, trusted)
    assert command("federate", "renew", "ours", "--authority", str(safe)).code == 0
    check_certificate(server, trusted)
    assert (layout.server / "server.key").stat().st_mode & 0o777 == 0o600


def test_only_the_authority_that_nodes_trust_renews(layout, tmp_path):
    before = (layout.server / "server.crt").read_bytes()
    with raises(OutputError, where=str(tmp_path), problem="ca.crt", remedy="--authority"):
        renew(layout, tmp_path)
    write_authority(tmp_path)
    with raises(OutputError, where=str(tmp_path / "ca.crt"), problem=str(layout.server / "ca.crt")):
        renew(layout, tmp_path)
    with raises(OutputError, where=str(tmp_path), problem="gate.toml", remedy="fedpgp federate init"):
        renew(FederationLayout(tmp_path), tmp_path)
    assert (layout.server / "server.crt").read_bytes() == before


def test_flowers_telemetry_and_update_check_are_off_in_what_is_started(tmp_path):
    started = environment(tmp_path)
    assert (started["FLWR_TELEMETRY_ENABLED"], started["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")


def test_what_is_started_uses_no_proxy_for_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    monkeypatch.delenv("no_proxy", raising=False)
    started = environment(tmp_path)
    assert started["NO_PROXY"] == started["no_proxy"] == "example.org,localhost,127.0.0.1,::1"


def test_a_plug_in_runs_on_a_node_only_if_its_owner_enabled_it(layout, command, monkeypatch):
    monkeypatch.setattr("fedpgp.flower.deployment.client.installed", lambda: {"mine": None})
    file = layout.node(0) / "node.toml"
    file.write_text(file.read_text().replace('method = "fedpgp"', 'method = "mine"'))
    refused(command("federate", "node", str(layout.node(0)), "--check"), "'mine'", "plugins in node.toml")


def test_the_hashes_that_an_owner_wrote_are_given_to_the_node(layout, tmp_path):
    file = layout.node(0) / "node.toml"
    file.write_text(file.read_text().replace('apps = ""', 'apps = "ab12, cd34"'))
    command = NodeDirectory.read(layout.node(0)).command(tmp_path / "node.toml")
    assert [word for word in command if word.startswith("--app=")] == ["--app=ab12", "--app=cd34"]
    assert command[command.index("--experiment") + 1] == str(layout.node(0) / "experiment.toml")


def test_finished_rounds_ignores_an_incomplete_line(tmp_path):
    run = tmp_path / "run"
    assert finished_rounds(run) == []
    run.mkdir()
    first, second = ({"round": number, "local": 50.0 + number} for number in (1, 2))
    lines = f"{json.dumps(first)}\n{json.dumps(second)}\n"
    (run / "rounds.jsonl").write_text(lines[:-3])  # the second is being written
    assert finished_rounds(run) == [first]
    (run / "rounds.jsonl").write_text(lines)
    assert finished_rounds(run) == [first, second]


def test_after_each_round_the_remaining_time_is_estimated():
    records = [
        {"round": number, "local": 60.0, "seconds_training": 4.0 * number, "seconds_evaluation": 6.0}
        for number in (1, 2)
    ]
    assert _round_summary(records, 10) == "Local 60.0, about 96 s left"  # 10 s and 14 s, and eight rounds
    assert _round_summary(records, 2) == "Local 60.0"
    assert _round_summary([{**records[0], "round": 0}], 10) == "Local 60.0"  # a method without training has one round


@pytest.mark.slow
def test_a_supernode_that_gives_up_ends_although_one_of_its_threads_continues():
    code = """
import threading, time
from fedpgp.flower.deployment import supernode

def gives_up():
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise ConnectionError("handshake")

supernode.run_supernode = lambda options: gives_up()
supernode.main()
"""
    start = [
        sys.executable,
        "-c",
        code,
        "--experiment",
        "e.toml",
        "--superlink",
        "127.0.0.1:1",
        "--node-config",
        "n.toml",
    ]
    done = subprocess.run(start, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "ConnectionError: handshake" in done.stderr


@pytest.mark.slow
def test_a_node_imports_nothing_from_its_working_directory(layout, tmp_path):
    start = NodeDirectory.read(layout.node(0)).command(tmp_path / "node.toml")
    (tmp_path / "yaml.py").write_text("raise SystemExit('planted')")
    done = subprocess.run([*start, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "planted" not in done.stderr


def test_bad_input_is_reported_at_the_node_with_exit_code_2(layout, command, cache, tmp_path):
    node, file = layout.node(0), layout.node(0) / "node.toml"
    written, start = file.read_text(), ("node", str(node), "--cache-dir", str(cache), "--check")

    def check(*expected, **settings):
        """Check that the node refuses to start with these settings."""
        text = written
        for name, value in settings.items():
            text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        file.write_text(text)
        refused(command("federate", *start), *expected)

    init = ("init", "other", "--nodes", "2", "--host", "10.0.0.1", "--insecure")
    for arguments, says in (
        ((*start, "--data", "nowhere"), ("data.source", "nowhere")),
        (init, ("--insecure", "10.0.0.1:8000")),
        (("server", str(tmp_path)), (str(tmp_path), "config.toml")),
        (("node", str(tmp_path)), (str(tmp_path), "node.toml")),
    ):
        refused(command("federate", *arguments), *says)
    check("client", "0 to 1", "7", client=7)
    check("client", "integer", "'x'", client='"x"')
    check("folder", "experiment, method, seed, client", client='0\nfolder = "x"')
    (node / "key").chmod(0o644)
    check(str(node / "key"), "other users", f"chmod 600 {node / 'key'}")
    (node / "key").chmod(0o600)
    (node / "state").mkdir(mode=0o755)
    check(str(node / "state"), "other users", f"chmod 700 {node / 'state'}")
    (node / "state").rmdir()
    (node / "key").unlink()
    check(str(node), "ca.crt or key")


def test_the_numbers_of_clients_and_nodes_must_be_equal(command, tmp_path):
    ended = command("federate", "init", "ours", "--nodes", "3", "--set", "task.clients=2")
    refused(ended, "task.clients", "3", "2", "--nodes 2")
    assert not (tmp_path / "ours").exists()
