"""A federation with real processes on the loopback address: TLS, keys, four nodes, faults, and all network traffic."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from proxy import Proxy
from raising import raises
from safetensors.torch import load_file
from typer.testing import CliRunner

import fedpgp
from fedpgp.cli import app
from fedpgp.data.sources import pictograms
from fedpgp.errors import ConfigError
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.local import LocalFederation, finished_rounds, free_ports, local_federation
from fedpgp.flower.deployment.node_directory import NodeDirectory
from fedpgp.flower.deployment.processes import SCRIPTS, environment
from fedpgp.flower.deployment.superlink import server
from fedpgp.report import tables

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import differences, new_federation, processes_of, undisturbed

pytestmark = pytest.mark.xdist_group("federation")

SHORT = ["task.shots=4", "federation.rounds=2", "federation.path_points=2", "federation.deadline=60"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")


def flwr(layout: FederationLayout, *arguments: str) -> str:
    command = [str(SCRIPTS / "flwr"), *arguments]
    done = subprocess.run(command, env=environment(layout.flwr), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def left(layout: FederationLayout) -> list[str]:
    """Return the processes of a federation that are still running."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(layout.directory) in line and "pytest" not in line]


def own_parts(layout: FederationLayout, client: int) -> dict[str, torch.Tensor]:
    *_, last = sorted((layout.node(client) / "state").glob("*/*/round-*.safetensors"))
    return load_file(last)


@pytest.mark.slow
def test_four_nodes_with_tls_and_keys_have_the_local_engines_table_and_leave_nothing(tmp_path, cache):
    settings = ["task.clients=4", "federation.eval_every=2", *SHORT]
    local = fedpgp.run("fedpgp", 0, changes=settings, cache=cache)  # encodes the images for all nodes
    layout = new_federation(tmp_path / "federation", "fedpgp", 4, settings)
    run, counts, over = layout.runs / "local", [], []
    with local_federation(layout, 4, str(cache)) as federation:
        federation.complete(run, pytest.fail, counts.append, lambda records: over.append(len(records)))
        assert counts == sorted(counts)  # the last node may connect during a round
        assert over == [1, 2]
        (listed,) = json.loads(flwr(layout, "ls", "local", "--format", "json"))["runs"]
        assert listed["status"] == "finished:completed"
        told = flwr(layout, "log", listed["run-id"], "local", "--show")
        assert "round 2 of 2: Local" in told
    assert left(layout) == []
    found = fedpgp.load_run(run)
    elsewhere = ("seconds", "calibration_error", "macro")  # clients do not send their answers to a server
    same = {name: value for name, value in local.results.items() if name not in elsewhere}
    assert same == {name: value for name, value in found.results.items() if name not in elsewhere}
    assert torch.equal(found.prompts["shared/p_G"], local.prompts["shared/p_G"])
    assert list(found.prompts) == ["shared/p_G"]  # the private parts stay on the nodes:
    for client in range(4):
        for name, value in own_parts(layout, client).items():
            assert torch.equal(value, local.prompts[name.replace("private/", f"private/{client}/")])
    for file in layout.directory.glob("nodes/*/state/*/*/*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    table, same_table = (tables.table(fedpgp.Comparison([one])) for one in (found, local))
    assert [row[:-1] for row in table.rows] == [row[:-1] for row in same_table.rows]  # except seconds
    assert len(table.rows) == 2
    shown = json.loads(CliRunner().invoke(app, ["show", str(run), "--json"]).stdout)
    assert shown["rows"][0]["local"] == local.results["final"]["local"]


def windows(tensor: torch.Tensor) -> list[bytes]:
    raw = tensor.contiguous().numpy().tobytes()
    return [raw[at : at + 16] for at in range(0, max(1, len(raw) - 16), 64) if any(raw[at : at + 16])]


@pytest.mark.slow
def test_no_byte_on_the_wire_is_of_a_private_part_or_a_feature(tmp_path, cache):
    """The federation runs without TLS so that the bytes can be read; the messages are the same."""
    settings = ["task.clients=2", "federation.eval_every=2", *SHORT]
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, settings, insecure=True)
    address = layout.connection.address
    with Proxy(int(address.rpartition(":")[2])) as proxy:
        for client in range(2):
            file = layout.node(client) / "node.toml"
            file.write_text(file.read_text().replace(address, f"127.0.0.1:{proxy.port}"))
        with local_federation(layout, 2, str(cache)) as federation:
            federation.complete(layout.runs / "local", pytest.fail)
        captured = bytes(proxy.up)
    names = [name for name in pictograms.read().class_names if len(name) > 6]  # shorter names may occur by chance
    assert not any(text.encode() in captured for text in (str(tmp_path), str(cache), *names))
    shared = fedpgp.load_run(layout.runs / "local").prompts
    sent = bytes(proxy.down)
    assert any(window in sent for tensor in shared.values() for window in windows(tensor))  # so the search works
    secrets = [value for client in range(2) for value in own_parts(layout, client).values()]
    secrets += [value for file in cache.glob("**/*.safetensors") for value in load_file(file).values()][:3]
    assert len(secrets) > 4
    for secret in secrets:
        assert not any(window in captured for window in windows(secret.float()[:500]))


@pytest.mark.by_hand
def test_killed_cut_off_stalled_and_restarted_it_ends_with_the_parts_of_an_undisturbed_run(tmp_path, cache):
    """In one run, a node is killed, one hangs, a third one's network stalls and is cut, and the server is killed."""
    settings = ["task.clients=3", "task.shots=4", "federation.rounds=7", "federation.eval_every=7"]
    settings += ["federation.path_points=1", "federation.deadline=15"]
    layout = new_federation(tmp_path / "federation", "fedpgp", 3, settings)
    address = layout.gate.listen
    said: list[str] = []
    faults: list[Exception] = []
    ended = threading.Event()

    def disturb(federation: LocalFederation, proxy: Proxy) -> None:
        wait(lambda: has_trained(layout, 0, 1), ended)
        os.killpg(federation.processes["node-0"].pid, signal.SIGKILL)  # the server notices this only later
        wait(lambda: has_trained(layout, 1, 2), ended)
        hanging = federation.processes["node-1"]
        os.killpg(hanging.pid, signal.SIGSTOP)
        wait(lambda: was_dropped(layout, 1), ended)
        os.killpg(hanging.pid, signal.SIGCONT)
        wait(lambda: has_trained(layout, 2, 4), ended)
        proxy.flowing.clear()
        wait(lambda: was_dropped(layout, 2), ended)
        proxy.flowing.set()
        proxy.cut()
        wait(lambda: has_trained(layout, None, 5), ended)
        for one in processes_of(layout, "flwr-serverapp"):
            os.kill(one, signal.SIGKILL)
        wait(lambda: has_trained(layout, None, 6), ended)
        os.killpg(federation.processes["server"].pid, signal.SIGKILL)

    def disturbed(*arguments: object) -> None:
        try:
            disturb(*arguments)
        except Exception as error:
            faults.append(error)

    with Proxy(int(address.rpartition(":")[2])) as proxy:
        file = layout.node(2) / "node.toml"
        file.write_text(file.read_text().replace(address, f"127.0.0.1:{proxy.port}"))
        with local_federation(layout, 3, str(cache)) as federation:
            thread = threading.Thread(target=disturbed, args=(federation, proxy), daemon=True)
            thread.start()
            federation.complete(layout.runs / "local", said.append)
            ended.set()
            thread.join()
            assert not faults
            wait(lambda: federation.tend() or federation.online() == 3)  # all nodes are back
    assert left(layout) == []
    run = fedpgp.load_run(layout.runs / "local")
    assert len(run.rounds) == 7
    dropped = [one for record in run.rounds for one in record.get("dropped", ())]
    assert dropped, "something was lost, and is said"
    assert differences(layout, run, undisturbed(run.config, "fedpgp", run, cache)) == []
    assert any("was started again" in text for text in said)


@pytest.mark.slow
def test_a_node_with_its_own_data_participates_and_a_node_with_other_names_is_refused(tmp_path, cache):
    """Two nodes have their own folders with different classes, and train without a third node that does not fit."""
    names = tmp_path / "names.txt"
    source = pictograms.read()
    classes = [source.class_names[label] for label in range(6)]
    names.write_text("\n".join(classes))
    for node, labels in enumerate([(0, 1, 4), (2, 3, 5)]):
        for split in ("train", "validation", "test"):
            dataset = getattr(source, split)
            for label in labels:
                place = tmp_path / f"images-{node}" / split / classes[label]
                place.mkdir(parents=True)
                for image in dataset.of_classes([label])[:6]:
                    dataset.image(int(image)).save(place / f"{image}.png")
    (tmp_path / "images-2" / "train").mkdir(parents=True)
    for name in ("zebra", classes[0]):
        place = tmp_path / "images-2" / "train" / name
        place.mkdir()
        source.train.image(0).save(place / "0.png")
    directory = tmp_path / "federation"
    options = ["--nodes", "3", "--class-names", str(names), "--set", "task.protocol=personalization"]
    options += ["--set", "task.shots=0", "--set", "federation.rounds=2", "--set", "federation.deadline=15"]
    done = command("init", str(directory), *options, "--port", str(free_port()), "--superlink-port", str(free_port()))
    assert done.returncode == 0, done.stderr
    layout = FederationLayout(directory)
    for client in range(3):
        file = layout.node(client) / "node.toml"
        file.write_text(file.read_text().replace('data = ""', f'data = "{tmp_path}/images-{client}"'))
    refused = command("node", str(layout.node(2)), "--cache-dir", str(cache))
    assert refused.returncode == 2
    assert "'zebra'" in refused.stderr
    run = layout.runs / "own"
    with local_federation(layout, 2, str(cache)) as federation:
        federation.complete(run, pytest.fail)
    found = fedpgp.load_run(run)
    assert [one["client"] for one in found.results["clients"]] == [0, 1]
    assert {record["participants"] == [0, 1] for record in found.rounds} == {True}
    assert all("no node" in one["reason"] for record in found.rounds for one in record["dropped"])
    assert found.results["clients"][0]["examples"] == 18
    assert 0 <= found.results["final"]["local"] <= 100


def wait(condition: Callable[[], object], ended: threading.Event | None = None, seconds: float = 240) -> None:
    """Return when a condition holds; raise TimeoutError if it does not in time, or if `ended` is set before."""
    end = time.monotonic() + seconds
    ended = ended or threading.Event()
    while not condition():
        if ended.wait(0.1) or time.monotonic() > end:
            raise TimeoutError("the federation ended, or time is over, before a condition held")


def has_trained(layout: FederationLayout, client: int | None, number: int) -> bool:
    """Return whether a client, or any client, has trained in a round or in a later one."""
    name = "*" if client is None else layout.node(client).name
    files = (layout.directory / "nodes").glob(f"{name}/state/*/*/round-*.safetensors")
    return any(int(file.stem.removeprefix("round-")) >= number for file in files)


def was_dropped(layout: FederationLayout, client: int) -> bool:
    """Return whether a client was left out of the last finished round."""
    *_, last = [{}, *finished_rounds(layout.runs / "local")]
    return client in [one["client"] for one in last.get("dropped", ())]


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "fedpgp", "federate", *arguments], capture_output=True, text=True)


def free_port() -> int:
    return free_ports(1)[0]


@pytest.mark.slow
def test_a_run_that_cannot_begin_reports_the_reason_to_its_caller_in_one_line(tmp_path, cache):
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, ["task.clients=2", *SHORT])
    other = layout.runs / "other"
    other.mkdir()

    def told(settings: str) -> str:
        """Return the one error in the stream of a run."""
        command = [str(SCRIPTS / "flwr"), "run", str(layout.app), "local", "--stream", "--run-config", settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(layout.flwr))
        lines = (done.stdout + done.stderr).splitlines()
        assert not any("Traceback" in line or "Exit Code" in line or line.startswith("  File") for line in lines)
        (error,) = (line for line in lines if "error: " in line)
        return error

    with server(layout, tmp_path / "server.log"):
        assert all(name in told('method="promtfl"') for name in ("'promtfl'", "'promptfl'"))
        assert f"{other}: the directory exists" in told(f'output="{other}"')
        states = json.loads(flwr(layout, "ls", "local", "--format", "json"))["runs"]
        assert {run["status"] for run in states} == {"finished:failed"}
        assert any("the directory exists" in run["status-details"] for run in states)


@pytest.mark.slow
def test_reach_distinguishes_a_silent_server_from_another_federations_server(tmp_path, cache):
    layouts = [new_federation(tmp_path / name, "fedpgp", 2, ["task.clients=2", *SHORT]) for name in ("one", "two")]
    node = NodeDirectory.read(layouts[0].node(0))
    stranger = replace(NodeDirectory.read(layouts[1].node(0)), superlink=node.superlink)
    assert "does not answer yet" in node.reach()
    with server(layouts[0], tmp_path / "server.log"):
        assert node.reach().endswith("answers")
        with raises(ConfigError, where=node.superlink, problem="certificate"):
            stranger.reach()
