"""Which apps a node accepts."""

import shutil
from pathlib import Path

import apps
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType

from fedpgp.errors import OutputError
from fedpgp.flower.deployment.app_policy import (
    EXPERIMENT,
    LARGEST,
    MANIFEST,
    PYPROJECT,
    AppPolicy,
    AppRefused,
    app_hash,
    hash_of_directory,
    unpacked,
)

CLIENT = "federation/client_app.py"
AGREED = "write its hash into apps in node.toml"
UPGRADED = "after an upgrade the server's operator writes the app anew"


@pytest.fixture
def files(layout):
    """The app of the federation as `flwr run` packs it."""
    return unpacked(build_fab_from_disk(layout.app))


def edited(files, old, new):
    text = files[PYPROJECT].decode()
    assert old in text
    return files | {PYPROJECT: text.replace(old, new).encode()}


def test_the_app_of_the_nodes_own_fedpgp_is_accepted_with_any_name_and_configuration(policy, files):
    policy.check(*apps.sent(apps.packed(files), files))
    other = edited(edited(files, 'name = "ours"', 'name = "theirs"'), 'method = "fedpgp"', 'method = "promptfl"')
    other = edited(edited(other, "seed = 0", "seed = 3"), 'output = "runs/ours"', 'output = "runs/2"')
    policy.check(*apps.sent(apps.packed(other), other))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda files: files | {CLIENT: b"import os\n" + files[CLIENT]}, rf"its {CLIENT} is not that .*{UPGRADED}"),
        (lambda files: files | {"federation/__init__.py": b"import os"}, r"its federation/__init__\.py is not that"),
        (lambda files: files | {"torch.py": b"import os"}, rf"it has the file 'torch\.py', which no app .*{AGREED}"),
        (lambda files: files | {"federation/": b""}, "it has the file 'federation/'"),
        (lambda files: {name: files[name] for name in files if name != CLIENT}, rf"it lacks {CLIENT}; .*{UPGRADED}"),
        (
            lambda files: edited(files, "dependencies = []", 'dependencies = ["evil"]'),
            "in more than name and config",
        ),
        (lambda files: edited(files, "client_app:app", "server_app:app"), "in more than name and config"),
        (lambda files: edited(files, 'name = "ours"', 'name = "../x"'), "in more than name and config"),
        (lambda files: edited(files, "seed = 0", "seed = 0\nfile = 'x'"), "in more than name and config"),
        (lambda files: edited(files, "seed = 0", "seed = true"), "in more than name and config"),
        (lambda files: files | {EXPERIMENT: files[EXPERIMENT] + b"\n"}, r"its .*experiment\.toml is another than"),
    ],
)
def test_an_app_with_other_code_or_another_experiment_is_refused_by_name_with_what_to_do(change, says, policy, files):
    changed = change(files)
    with pytest.raises(AppRefused, match=f"the app 'fedpgp/.*' with the hash {app_hash(changed)} is refused: .*{says}"):
        policy.check(*apps.sent(apps.packed(changed), changed))


@pytest.mark.parametrize(
    "differing",
    [
        {"fab_version": "1.0.0/../../../../tmp/x"},  # Flower starts what lies there
        {"fab_id": "fedpgp/other"},
        {"fab_hash": "0" * 64},
    ],
)
def test_an_app_that_the_server_names_otherwise_is_refused(differing, policy, files):
    with pytest.raises(AppRefused, match="the server gives it the name, version or hash of another"):
        policy.check(*apps.sent(apps.packed(files), files, **differing))


def test_an_app_that_is_run_as_an_agent_is_refused(policy, files):
    with pytest.raises(AppRefused, match="its run is a"):
        policy.check(*apps.sent(apps.packed(files), files, primary_task_type=TaskType.AGENT_APP))


def test_what_is_no_app_is_refused(policy, files):
    large = files | {EXPERIMENT: b"\n" * (LARGEST + 1)}
    for content, says in (
        (b"PK no archive", "it is no ZIP file"),
        (apps.packed(large), "it is larger than 16 MiB"),
    ):
        with pytest.raises(AppRefused, match=says):
            policy.check(*apps.sent(content, files))
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = apps.packed(files, (CLIENT, b"import os"))
    with pytest.raises(AppRefused, match="two files of one name"):
        policy.check(*apps.sent(twice, files))


def test_an_app_runs_when_the_owner_wrote_the_hash_that_app_hash_prints(layout, policy, command):
    other = Path(shutil.copytree(layout.app, "other"))
    (other / CLIENT).write_text("print('mine')\n")
    ended = command("federate", "app-hash", "other")
    digest = ended.out.strip()
    files = unpacked(build_fab_from_disk(other))
    given = apps.sent(apps.packed(files), files)
    with pytest.raises(AppRefused, match=digest):
        policy.check(*given)
    AppPolicy(policy.experiment, [digest]).check(*given)
    with pytest.raises(AppRefused):
        AppPolicy(policy.experiment, [hash_of_directory(layout.app)]).check(*given)
    assert command("federate", "app-hash", ".").code == 2


def test_the_hash_is_of_names_and_contents_and_not_of_how_they_are_packed(files):
    assert app_hash(files) == app_hash(dict(reversed(files.items()))) == app_hash(files | {MANIFEST: b"anything"})
    assert app_hash(files) != app_hash(files | {CLIENT: b""})
    assert app_hash({"a": b"1", "b": b"2"}) != app_hash({"a": b"2", "b": b"1"})


def test_a_directory_without_an_app_has_no_hash(tmp_path):
    with pytest.raises(OutputError, match="is no Flower app"):
        hash_of_directory(tmp_path)
