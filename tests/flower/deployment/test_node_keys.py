"""New keys and further nodes, without a server."""

import tomllib
from pathlib import Path

import pytest
from commands import refused

from fedpgp.flower.deployment.credentials import read_public_key
from fedpgp.flower.deployment.gate import Keys
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.node_directory import NodeDirectory

pytestmark = pytest.mark.slow


@pytest.fixture
def layout(command):
    assert (
        command("federate", "init", "ours", "--nodes", "2", "--host", "server.example.org", "--port", "443").code == 0
    )
    return FederationLayout(Path("ours").absolute())


def contents(layout: FederationLayout) -> dict[str, bytes]:
    files = [path for path in layout.directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(layout.directory)): path.read_bytes() for path in files}


def test_a_new_key_replaces_both_files_of_the_old_one_and_needs_no_authority(layout, command, tmp_path):
    (layout.directory / "authority").rename(tmp_path / "safe")
    before = contents(layout)
    ended = command("federate", "key", "ours", "node-1")
    assert ended.code == 0 and str(layout.node(1) / "key") in ended.out
    after = contents(layout)
    assert {name for name in after if after[name] != before.get(name)} == {"nodes/node-1/key", "server/node-1.pub"}
    assert after.keys() == before.keys()
    assert (layout.node(1) / "key").stat().st_mode & 0o777 == 0o600
    assert read_public_key(layout.server / "node-1.pub")


def test_the_next_number_adds_a_node_with_all_its_files_and_a_client(layout, command):
    gate = layout.server / "gate.toml"
    gate.write_text(gate.read_text().replace(layout.gate.listen, "127.0.0.1:8443"))  # behind nginx
    ended = command("federate", "key", "ours", "node-2")
    assert ended.code == 0 and all(str(path) in ended.out.replace("\n", "") for path in (layout.node(2),))
    nodes = [NodeDirectory.read(layout.node(client)) for client in range(3)]
    assert [node.client for node in nodes] == [0, 1, 2]
    assert {(node.superlink, node.method, node.seed) for node in nodes} == {("server.example.org:443", "fedpgp", 0)}
    experiment = (layout.app / "federation" / "experiment.toml").read_bytes()
    assert tomllib.loads(experiment.decode())["task"]["clients"] == 3
    assert {Path(node.experiment).read_bytes() for node in nodes} == {experiment}
    assert (layout.node(2) / "ca.crt").read_bytes() == (layout.server / "ca.crt").read_bytes()
    assert len(Keys(layout.server)) == 3
    container = [(layout.node(client) / "compose.yaml").read_text() for client in (0, 2)]
    assert container[0] == container[1] and "compose.yaml does not start it" in " ".join(ended.out.split())


def test_a_node_whose_directory_is_only_on_its_machine_gets_a_key_and_other_directories_are_not_made(layout, command):
    for client in range(2):
        (layout.node(client)).rename(layout.directory / f"elsewhere-{client}")
    assert command("federate", "key", "ours", "node-0").code == 0
    assert [path.name for path in layout.node(0).iterdir()] == ["key"]
    assert command("federate", "key", "ours", "node-2").code == 0
    assert not layout.node(1).exists() and (layout.node(2) / "node.toml").exists()


@pytest.mark.parametrize("name", ["node-3", "node-01", "1", "../node-1"])
def test_a_node_that_does_not_exist_and_is_not_the_next_one_is_refused(layout, command, name):
    before = contents(layout)
    refused(command("federate", "key", "ours", name), "node-0 to node-1", "node-2", repr(name))
    assert contents(layout) == before


def test_a_federation_without_keys_is_refused(command):
    assert command("federate", "init", "open", "--nodes", "2", "--insecure").code == 0
    refused(command("federate", "key", "open", "node-0"), "open", "--insecure")


def test_a_file_that_cannot_be_written_or_read_is_reported_in_one_line(layout, command, tmp_path):
    (tmp_path / "file").touch()
    refused(command("federate", "init", "file/ours", "--nodes", "2"), "file", "permissions")
    (layout.app / "federation" / "experiment.toml").unlink()
    refused(command("federate", "key", "ours", "node-1"), str(layout.app / "federation" / "experiment.toml"))
