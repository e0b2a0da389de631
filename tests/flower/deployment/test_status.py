"""`fedpgp federate status` with the answers of a SuperLink that does not run."""

import json
import os
import shutil
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from commands import refused
from flwr.proto.control_pb2 import ListNodesResponse, ListRunsResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus
from flwr.proto.transport_pb2 import Scalar

from fedpgp.cli import printing
from fedpgp.config import load_config
from fedpgp.flower.deployment import status
from fedpgp.flower.deployment.credentials import public_key_pem, read_public_key, write_node_key, write_server
from fedpgp.flower.deployment.layout import FederationLayout, FederationPlan, create
from fedpgp.runtime.version import __version__

EARLY, LATE = "2026-11-30T20:00:00+00:00", "2026-11-30T21:00:00.123456+00:00"
AFTER = "2026-11-30T21:00:05+00:00"
RECORD = {"round": 3, "participants": [0], "local": 61.5, "base": 40.0, "wire_up_train": 10.0, "seconds_training": 2.0}
RECORD |= {"dropped": [{"client": 1, "in": "train", "reason": "no reply within 60 seconds"}]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of a federation, which tests copy."""
    config = load_config(None, ["task.clients=2", "federation.rounds=10"])
    plan = FederationPlan("ours", "127.0.0.1", 8000, 9092, 2, config, "fedpgp", 0)
    return create(tmp_path_factory.mktemp("status") / "ours", plan).directory


@pytest.fixture
def layout(command, written):
    return FederationLayout(Path(shutil.copytree(written, "ours")))


@pytest.fixture
def superlink(layout, monkeypatch):
    """Answers of a SuperLink; both nodes are connected, and there was no run."""
    answers = SimpleNamespace(nodes=[info(layout, client) for client in range(2)], runs=[])
    client = SimpleNamespace(
        ListNodes=lambda request: ListNodesResponse(nodes_info=answers.nodes, now=LATE),
        ListRuns=lambda request: ListRunsResponse(run_dict={run.run_id: run for run in answers.runs}, now=LATE),
    )
    monkeypatch.setattr(status, "control", lambda layout: nullcontext(client))
    return answers


def info(layout, client, state="online", **times):
    key = public_key_pem(read_public_key(layout.server / f"node-{client}.pub"))
    times = times or {"last_activated_at": EARLY}
    return NodeInfo(node_id=7 + client, status=state, public_key=key, name=f"node-{client}", **times)


def run_of(layout, state="running", sub="", details="", **override):
    """Return a run whose directory has the record of its third round."""
    output = layout.runs / "ours"
    output.mkdir(exist_ok=True)
    shutil.copy(layout.app / "federation" / "experiment.toml", output / "config.toml")
    (output / "rounds.jsonl").write_text(json.dumps({**RECORD, "round": 2}) + "\n" + json.dumps(RECORD) + "\n")
    os.utime(output / "rounds.jsonl", times=(datetime.fromisoformat(LATE).timestamp(),) * 2)
    changed = {name: Scalar(string=value) for name, value in override.items()}
    return Run(
        run_id=5,
        status=RunStatus(status=state, sub_status=sub, details=details),
        pending_at=EARLY,
        running_at=EARLY,
        finished_at=LATE if sub else "",
        override_config=changed,
    )


def told(command, code):
    """Return the JSON document of the command, which must end with an exit code."""
    ended = command("federate", "status", "ours", "--json")
    assert ended.code == code, ended
    return json.loads(ended.out)


def only_problem(found, *texts):
    (problem,) = found["problems"]
    for text in texts:
        assert text in problem["problem"] + " " + problem["remedy"], problem


def test_all_is_well_if_all_nodes_are_connected(superlink, command):
    found = told(command, 0)
    assert found["federation"] == "ours" and found["answers"] and found["run"] is None and found["clients"] == 2
    assert found["versions"]["fedpgp"] == __version__
    first = {"client": 0, "name": "node-0", "node": "7", "state": "online", "since": EARLY, "fedpgp": None}
    assert found["nodes"][0] == first
    assert {*found["certificates"]} == {"server.crt", "ca.crt"}
    assert found["problems"] == []


def test_every_node_that_is_not_connected_is_a_problem_with_a_remedy(layout, superlink, command):
    superlink.nodes[1] = info(layout, 1, "offline", last_activated_at=EARLY, last_deactivated_at=LATE)
    found = told(command, 1)
    assert (found["nodes"][1]["state"], found["nodes"][1]["since"]) == ("offline", "2026-11-30T21:00:00+00:00")
    only_problem(found, "node-1", "offline", "2026-11-30T21:00:00", "fedpgp federate node node-1")
    superlink.nodes[1] = info(layout, 1, "registered", registered_at=EARLY)
    only_problem(told(command, 1), "node-1 has never connected", "fedpgp federate node node-1")
    superlink.nodes[1] = info(layout, 1, "unregistered", last_activated_at=EARLY)
    found = told(command, 1)
    assert [node["state"] for node in found["nodes"]] == ["online", "not registered"]
    only_problem(found, "node-1.pub", "fedpgp federate key ours node-1")


def test_a_revoked_key_is_a_problem_until_the_client_has_a_new_key(layout, superlink, command):
    key = layout.server / "node-1.pub"
    key.rename(key.with_suffix(".revoked"))
    found = told(command, 1)
    assert [node["state"] for node in found["nodes"]] == ["online", "revoked"]
    only_problem(found, "node-1", "revoked", str(layout.server), "fedpgp federate key ours node-1")
    write_node_key(layout.node(1) / "new-key", key)
    superlink.nodes.append(info(layout, 1))
    found = told(command, 0)
    assert [node["name"] for node in found["nodes"]] == ["node-0", "node-1"]


def test_the_current_run_has_its_last_round_and_who_was_left_out(layout, superlink, command):
    superlink.runs = [run_of(layout, output="runs/ours", method="promptfl")]
    found = told(command, 1)
    run = found["run"]
    assert (run["id"], run["status"], run["since"], run["method"]) == ("5", "running", EARLY, "promptfl")
    assert (run["round"], run["rounds"], run["participants"]) == (3, 10, [0])
    assert run["figures"] == {"local": 61.5, "base": 40.0, "wire_up_train": 10.0}
    assert (run["dropped"], run["drops"]) == (RECORD["dropped"], {"train": 2})
    assert [node["fedpgp"] for node in found["nodes"]] == [__version__, None]
    only_problem(found, "client 1", "round 3", "no reply within 60 seconds", "log of node-1")


def test_the_version_of_a_node_is_unknown_until_the_current_run_has_finished_a_round_with_it(
    layout, superlink, command
):
    def version():
        return told(command, 1 if superlink.runs[0].status.sub_status == "" else 0)["nodes"][0]["fedpgp"]

    superlink.runs = [run_of(layout)]
    assert version() == __version__
    superlink.nodes[0] = info(layout, 0, last_activated_at=AFTER)  # it was restarted after the round
    assert version() is None
    superlink.nodes[0] = info(layout, 0)
    superlink.runs[0].running_at = AFTER  # the round belongs to an earlier run, which the current one continues
    assert version() is None
    superlink.runs = [run_of(layout, "finished", "stopped")]
    assert version() is None


def test_a_failed_run_is_a_problem_and_a_finished_or_stopped_run_is_not(layout, superlink, command):
    details = "ServerApp failed with exception: fedpgp: error: the disk is full"
    superlink.runs = [run_of(layout, "finished", "failed", details)]
    found = told(command, 1)
    assert (found["run"]["status"], found["run"]["reason"]) == ("failed", details)
    only_problem(found, "run 5", "the disk is full", "flwr run")
    superlink.runs = [run_of(layout, "finished", "failed", "")]
    only_problem(told(command, 1), "run 5", "killed")
    for ended in ("completed", "stopped"):
        superlink.runs = [run_of(layout, "finished", ended)]
        assert told(command, 0)["run"]["status"] == ended


def test_a_certificate_that_expires_soon_is_a_problem(layout, superlink, command):
    for days, verb in ((29, "expires"), (0, "expired")):
        write_server(layout.server, layout.directory / "authority", "localhost", days=days)
        only_problem(told(command, 1), "server.crt", verb, "fedpgp federate renew ours")
    write_server(layout.server, layout.directory / "authority", "localhost", days=31)
    assert told(command, 0)["problems"] == []


def test_a_disk_that_is_nearly_full_is_a_problem(superlink, command, monkeypatch):
    monkeypatch.setattr(status.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    found = told(command, 1)
    assert found["free"] == 5 << 20
    only_problem(found, "5 MiB")


def test_a_server_that_does_not_answer_has_exit_code_2(layout, command, monkeypatch):
    def control(layout):
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(status, "control", control)
    found = told(command, 2)
    assert (found["answers"], found["nodes"], found["run"]) == (False, [], None)
    only_problem(found, layout.connection.address, "Connection refused", "fedpgp federate server ours")
    ended = command("federate", "status", "ours")
    assert ended.code == 2 and "fedpgp federate server ours" in ended.out


def test_a_directory_without_a_federation_is_reported(command, tmp_path):
    refused(command("federate", "status", str(tmp_path)), str(tmp_path), "config.toml", "fedpgp federate init")


def test_without_keys_only_connected_nodes_are_listed(command, superlink, layout):
    assert command("federate", "init", "ours", "--force", "--nodes", "2", "--insecure").code == 0
    superlink.nodes = [NodeInfo(node_id=9, status="online", public_key=b"x", last_activated_at=EARLY)]
    superlink.nodes += [NodeInfo(node_id=8, status="offline", public_key=b"y", last_deactivated_at=LATE)]
    found = told(command, 1)
    assert [node["node"] for node in found["nodes"]] == ["9"]
    assert found["certificates"] == {}
    only_problem(found, "1 of 2", "--insecure")


def test_the_table_fits_80_columns_and_has_the_nodes_the_run_and_the_problems(layout, superlink, command, monkeypatch):
    monkeypatch.setattr(printing.out, "_width", 80)
    superlink.nodes[1] = info(layout, 1, "offline", last_activated_at=EARLY, last_deactivated_at=LATE)
    superlink.runs = [run_of(layout)]
    ended = command("federate", "status", "ours")
    assert ended.code == 1
    assert max(map(len, ended.out.splitlines())) <= 80
    text = " ".join(ended.out.split())
    for expected in (
        "ours: 1 of 2 nodes are connected",
        "0 node-0 online 2026-11-30 20:00:00",
        "1 node-1 offline 2026-11-30 21:00:00",
        "run 5: running since 2026-11-30 20:00:00",
        "round 3 of 10: Local 61.5, Base 40.0; clients: 0",
        "left out: client 1 (train): no reply within 60 seconds",
        "→ Start it on the client's machine with `fedpgp federate node node-1`",
    ):
        assert expected in text, expected
    assert ended.err.endswith("Problems: 2.\n")
