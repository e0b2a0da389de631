"""`fedpgp federate upgrade`: the app is the installed version's, and everything else stays."""

import shutil

from commands import refused

from fedpgp.flower.deployment.app_policy import EXPERIMENT, PYPROJECT, hash_of_directory


def test_the_app_of_another_version_becomes_the_app_that_the_nodes_run(layout, command):
    before = {path: path.read_bytes() for path in layout.directory.rglob("*") if path.is_file()}
    for name in ("federation/server_app.py", "federation/client_app.py", PYPROJECT):
        file = layout.app / name
        file.write_text(f"# of another version\n{file.read_text()}".replace("Apache-2.0", "MIT"))
    (layout.image / "keep").write_text("# of another version\n")
    (layout.image / "fedpgp-0.0.9-py3-none-any.whl").write_text("")
    ended = command("federate", "upgrade", "ours")
    assert ended.code == 0 and "federate server ours" in ended.err
    assert {path: path.read_bytes() for path in layout.directory.rglob("*") if path.is_file()} == before


def test_a_directory_without_the_files_of_the_image_gets_none(layout, command):
    shutil.rmtree(layout.image)
    assert command("federate", "upgrade", "ours").code == 0
    assert not layout.image.exists()


def test_the_run_that_flwr_run_starts_stays_the_same(layout, command):
    file = layout.app / PYPROJECT
    changed = file.read_text().replace('method = "fedpgp"', 'method = "promptfl"').replace("seed = 0", "seed = 3")
    file.write_text(changed)
    before = hash_of_directory(layout.app)
    assert command("federate", "upgrade", "ours").code == 0
    assert (file.read_text(), hash_of_directory(layout.app)) == (changed, before)


def test_what_cannot_be_upgraded_is_reported_before_anything_is_written(layout, command, tmp_path):
    refused(command("federate", "upgrade", str(tmp_path)), str(tmp_path), PYPROJECT, "fedpgp federate init")
    (layout.app / EXPERIMENT).write_text("[federation]\nrounded = 3\n")
    code = layout.app / "federation" / "client_app.py"
    code.write_text("")
    refused(command("federate", "upgrade", "ours"), EXPERIMENT, "rounded")
    assert code.read_text() == ""
