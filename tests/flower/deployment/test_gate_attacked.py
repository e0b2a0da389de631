"""A federation from the documented commands, in network namespaces, which a host without a key attacks."""

import os
import re
import shutil
import sys
import threading
from pathlib import Path

import httpx
import pytest
import torch
from gates import ROUTE, answer, head, running, signed

import fedpgp
from fedpgp.flower.deployment.local import local_federation
from fedpgp.flower.deployment.processes import started

sys.path.append(str(Path(__file__).parents[3] / "tools"))
import attack_gate
from attack_gate import PORT, SUPERLINK_PORT, Federation, Machines, until
from federation_kills import new_federation

pytestmark = [
    pytest.mark.by_hand,
    pytest.mark.xdist_group("federation"),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"),
]

SHORT = ["task.shots=4", "federation.rounds=8", "federation.eval_every=8", "federation.path_points=2"]
REFUSED = {
    "list-runs": 404,
    "list-nodes": 404,
    "start-run": 404,
    "register-node": 404,
    "register-node of the fleet": 404,
    "activate-node": 401,
    "stop-run": 404,
    "unregister-node": 404,
    "acquire-task, 50 times": "50 × 404",
    "/docs": 404,
    "/openapi.json": 404,
}


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_behind_nginx_only_nodes_are_answered_while_1700_connections_are_held(tmp_path):
    layout = new_federation(tmp_path / "ours", "fedpgp", 2, ["task.clients=2"])
    address, key, authority = layout.gate.listen, layout.node(0) / "key", layout.server / "ca.crt"
    with running(layout.server) as setup:

        def ask(route: str = ROUTE, body: bytes = b"ping", **changes: str) -> int:
            headers = {**signed(key), "content-length": str(len(body)), **changes}
            with attack_gate.connection(address, authority) as connection:
                connection.sendall(head(route, headers) + body)
                return answer(connection)[0]

        config = tmp_path / "nginx.conf"
        written = (layout.server / "nginx.conf").read_text()
        config.write_text(written.replace("127.0.0.1:8443", f"127.0.0.1:{setup.port}"))
        command = [str(shutil.which("nginx")), "-c", str(config), "-e", str(tmp_path / "nginx.log")]
        command += ["-g", f"daemon off; pid {tmp_path}/nginx.pid;"]
        with started(command, {}, tmp_path / "nginx.out"):
            until(lambda: attack_gate.outcome(lambda: httpx.get(f"http://{address}")) == 200, 10, "nginx listens")
            assert ask() == 200
            assert ask(body=bytes(5 << 20)) == 200
            assert [ask(**{name: "AAAA"}) for name in ("flwr-signature", "flwr-public-key")] == [401, 401]
            for route in ("/docs", "/v1/fleet/register-node", "/v1/fleet/%2e%2e/control/start-run", ROUTE + "/"):
                assert ask(route) == 404
            assert attack_gate.actions(address, authority) == REFUSED
            assert {one["status"] for one in attack_gate.bodies(address, authority, 5, 20_000_000)} == {401}
            flood = (address, authority, 600, 1100, 15.0)
            thread = threading.Thread(target=attack_gate.connections, args=flood)
            thread.start()
            while thread.is_alive():
                assert ask() == 200
                thread.join(0.5)
        assert {one.target for one in setup.received} == {ROUTE.encode()}


def node_id(federation: Federation, client: int) -> int:
    (found,) = set(re.findall(r"SuperNode ID: (\d+)", federation.log(f"node-{client}")))
    return int(found)


def test_without_a_key_nothing_is_answered_and_the_run_is_the_one_without_a_gate(tmp_path, cache, monkeypatch):
    for name, value in attack_gate.QUIET.items():
        monkeypatch.setenv(name, value)
    names = ["server", "node-0", "node-1", "attacker"]
    with Machines(names) as machines, Federation(tmp_path / "ours", machines, 2, cache, SHORT) as federation:
        layout = federation.layout
        federation.start_nodes()
        federation.flwr("run", str(layout.app), "ours")
        until(lambda: len(federation.rounds()) >= 1, 180, "the first round")

        def attack(*arguments: str) -> object:
            return machines.attack("attacker", layout, *arguments)

        assert attack("actions") == REFUSED
        server = machines.addresses["server"]
        probe = f"import socket; print(socket.socket().connect_ex(('{server}', {SUPERLINK_PORT})))"
        closed = machines.on("attacker", sys.executable, "-c", probe)
        assert attack_gate.subprocess.run(closed, capture_output=True, text=True).stdout.strip() == "111"  # refused
        with attack_gate.highest(federation.memory) as memory:
            for one in attack("bodies", "--count", "5", "--size", "20000000"):
                assert one["status"] in (0, 401)
                assert one["sent"] < 16 << 20
        assert memory[1] - memory[0] < 50 << 20
        attack("connections", "--half", "200", "--bare", "400", "--seconds", "15")
        of_node_0 = ["of-another", "--node", str(node_id(federation, 0)), "--key"]
        assert attack(*of_node_0, str(layout.node(1) / "key")) == 401
        assert not (federation.run / "results.json").exists()  # the attack was during training
        federation.finish(300)
        (layout.server / "node-0.pub").rename(layout.server / "node-0.revoked")
        assert attack(*of_node_0, str(layout.node(0) / "key")) == 401
        until(lambda: "refuses this node's key" in federation.log("node-0"), 40, "the node that was connected ends")
        assert federation.layout.gate.listen == f"0.0.0.0:{PORT}"
        behind = fedpgp.load_run(federation.run)
    assert not [record for record in behind.rounds if record.get("dropped")]

    open_layout = new_federation(tmp_path / "open", "fedpgp", 2, ["task.clients=2", *SHORT], insecure=True)
    with local_federation(open_layout, 2, str(cache)) as without_gate:
        without_gate.complete(open_layout.runs / "local", pytest.fail)
        answered = attack_gate.actions(open_layout.connection.address, None)
        assert all(answered[name] == 200 for name in ("start-run", "list-nodes", "register-node", "/docs")), answered
    without = fedpgp.load_run(open_layout.runs / "local")
    assert {**behind.results, "seconds": None} == {**without.results, "seconds": None}
    assert {*behind.prompts} == {*without.prompts}
    assert all(torch.equal(value, without.prompts[name]) for name, value in behind.prompts.items())
