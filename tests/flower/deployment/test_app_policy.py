"""The policy for apps on a node."""

import shutil
from pathlib import Path

import apps
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from raising import raises

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
from fedpgp.runtime.version import __version__

CLIENT = "federation/client_app.py"
AGREED, UPGRADED = "apps in node.toml", f"fedpgp {__version__}"  # in remedies


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
    ("change", "problem", "remedy"),
    [
        (lambda files: files | {CLIENT: b"import os\n" + files[CLIENT]}, CLIENT, UPGRADED),
        (lambda files: files | {"federation/__init__.py": b"import os"}, "federation/__init__.py", UPGRADED),
        (lambda files: files | {"torch.py": b"import os"}, "'torch.py'", AGREED),
        (lambda files: files | {"federation/": b""}, "'federation/'", AGREED),
        (lambda files: {name: files[name] for name in files if name != CLIENT}, CLIENT, UPGRADED),
        (lambda files: edited(files, "dependencies = []", 'dependencies = ["evil"]'), PYPROJECT, UPGRADED),
        (lambda files: edited(files, "client_app:app", "server_app:app"), PYPROJECT, AGREED),
        (lambda files: edited(files, 'name = "ours"', 'name = "../x"'), PYPROJECT, AGREED),
        (lambda files: edited(files, "seed = 0", "seed = 0\nfile = 'x'"), PYPROJECT, AGREED),
        (lambda files: edited(files, "seed = 0", "seed = true"), PYPROJECT, AGREED),
        (lambda files: files | {EXPERIMENT: files[EXPERIMENT] + b"\n"}, EXPERIMENT, "copy it"),
    ],
)
def test_an_app_with_other_code_or_another_experiment_is_refused_by_name_with_what_to_do(
    change, problem, remedy, policy, files
):
    changed = change(files)
    with raises(AppRefused, where=app_hash(changed), problem=problem, remedy=remedy) as refused:
        policy.check(*apps.sent(apps.packed(changed), changed))
    assert "fedpgp/" in refused.value.where


@pytest.mark.parametrize(
    "differing",
    [
        {"fab_version": "1.0.0/../../../../tmp/x"},  # Flower would start the files at this path
        {"fab_id": "fedpgp/other"},
        {"fab_hash": "0" * 64},
    ],
)
def test_an_app_with_another_name_than_the_server_says_is_refused(differing, policy, files):
    with raises(AppRefused, problem="name, version or hash"):
        policy.check(*apps.sent(apps.packed(files), files, **differing))


def test_an_app_that_is_run_as_an_agent_is_refused(policy, files):
    with raises(AppRefused, problem=TaskType.AGENT_APP):
        policy.check(*apps.sent(apps.packed(files), files, primary_task_type=TaskType.AGENT_APP))


def test_a_file_that_is_not_an_app_is_refused(policy, files):
    large = files | {EXPERIMENT: b"\n" * (LARGEST + 1)}
    for content, says in (
        (b"PK no archive", "ZIP"),
        (apps.packed(large), "16 MiB"),
    ):
        with raises(AppRefused, problem=says):
            policy.check(*apps.sent(content, files))
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = apps.packed(files, (CLIENT, b"import os"))
    with raises(AppRefused, problem="same name"):
        policy.check(*apps.sent(twice, files))


def test_an_app_runs_when_the_owner_wrote_the_hash_that_app_hash_prints(layout, policy, command):
    other = Path(shutil.copytree(layout.app, "other"))
    (other / CLIENT).write_text("print('mine')\n")
    ended = command("federate", "app-hash", "other")
    digest = ended.out.strip()
    files = unpacked(build_fab_from_disk(other))
    given = apps.sent(apps.packed(files), files)
    with raises(AppRefused, where=digest):
        policy.check(*given)
    AppPolicy(policy.experiment, [digest]).check(*given)
    with pytest.raises(AppRefused):
        AppPolicy(policy.experiment, [hash_of_directory(layout.app)]).check(*given)
    assert command("federate", "app-hash", ".").code == 2


def test_the_hash_depends_on_names_and_contents_and_not_on_the_packing(files):
    assert app_hash(files) == app_hash(dict(reversed(files.items()))) == app_hash(files | {MANIFEST: b"anything"})
    assert app_hash(files) != app_hash(files | {CLIENT: b""})
    assert app_hash({"a": b"1", "b": b"2"}) != app_hash({"a": b"2", "b": b"1"})


def test_a_directory_without_an_app_has_no_hash(tmp_path):
    with raises(OutputError, where=str(tmp_path), remedy=PYPROJECT):
        hash_of_directory(tmp_path)
