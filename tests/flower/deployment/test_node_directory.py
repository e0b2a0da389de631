"""The settings of a node in node.toml."""

import os
import re
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from commands import refused
from PIL import Image

from fedpgp.flower.deployment import node_directory
from fedpgp.flower.deployment.node_directory import NodeDirectory
from fedpgp.flower.deployment.processes import STILL_CONNECTED

NOBODY = 65534  # id of a user without rights


def written(layout, **settings):
    file = layout.node(0) / "node.toml"
    text = file.read_text()
    for name, value in settings.items():
        text = re.sub(rf"^{name} = .*$", f'{name} = "{value}"', text, flags=re.MULTILINE)
    file.write_text(text)
    return layout.node(0)


def test_relative_paths_in_the_file_are_relative_to_it_and_other_paths_are_not(layout, tmp_path):
    node = written(layout, data="photos", state="private", cache="../cache")
    found = NodeDirectory.read(node)
    assert found.data == str(node / "photos")
    assert (found.state, found.cache) == (str(node / "private"), str(node / "../cache"))
    given = NodeDirectory.read(node, data="photos", state="private", cache=None)
    assert (given.data, given.state, given.cache) == ("photos", "private", found.cache)
    written(layout, data=tmp_path / "photos", state="", cache="")
    found = NodeDirectory.read(node)
    assert (found.data, found.state, found.cache) == (str(tmp_path / "photos"), str(node / "state"), "")
    for name in ("pictograms", "hf:org/name", "caltech101", ""):
        written(layout, data=name)
        assert NodeDirectory.read(node).data == name


@pytest.mark.parametrize("place", ["data", "state", "cache"])
def test_a_place_of_another_type_is_reported(place, layout, command):
    file = layout.node(0) / "node.toml"
    file.write_text(re.sub(rf"^{place} = .*$", f"{place} = 7", file.read_text(), flags=re.MULTILINE))
    refused(command("federate", "node", str(layout.node(0)), "--check"), place, "7")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_a_place_to_which_the_user_has_no_access_is_reported_in_one_line(layout, tmp_path, command):
    """Another user checks root's node, writes a federation into root's directory, and reads closed images."""
    photos = tmp_path / "photos"
    for name in ("crown", "beaker"):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(photos / name / "0.png")
    checks = ("data", "check", str(photos), "--no-decode")
    starts = ("federate", "node", str(layout.node(0)), "--check")
    creates = ("federate", "init", str(layout.directory / "new"), "--nodes", "2")
    for arguments in (checks, starts, creates):
        command(*arguments)  # imports all modules, which the other user may not read
    shutil.rmtree(layout.directory / "new")
    own = (directory for directory in tmp_path.parents if directory.name.startswith(("popen-", "pytest-")))
    for directory in (tmp_path, *own):  # pytest closes its directories
        directory.chmod(0o755)
    (photos / "crown").chmod(0o700)
    os.seteuid(NOBODY)
    try:
        ended = command(*starts), command(*creates), command(*checks)
    finally:
        os.seteuid(0)
    refused(ended[0], str(layout.node(0)), "Permission denied")
    refused(ended[1], "Permission denied")
    assert ended[2].code == 1 and len(ended[2].err.splitlines()) <= 1
    assert f"error: {photos / 'crown'}: this user has no access to it" in ended[2].out


def test_a_node_starts_again_while_the_server_counts_an_earlier_process_as_connected(layout, monkeypatch):
    codes, told = [STILL_CONNECTED, STILL_CONNECTED, 7], []

    @contextmanager
    def supernode(self):
        yield SimpleNamespace(wait=lambda: codes.pop(0))

    monkeypatch.setattr(NodeDirectory, "supernode", supernode)
    monkeypatch.setattr(node_directory, "PAUSE", 0)
    node = NodeDirectory.read(layout.node(0))
    assert node.run(told.append) == 7
    assert len(told) == 2
    codes[:] = [STILL_CONNECTED]
    monkeypatch.setattr(node_directory, "PATIENCE", -1)
    assert node.run(told.append) == STILL_CONNECTED
