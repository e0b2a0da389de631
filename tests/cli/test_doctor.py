"""`fedpgp doctor`: its findings, its behaviour after a failed check, and its exit code."""

import http.server
import json
import threading
from collections import Counter
from importlib.metadata import metadata
from pathlib import Path

import pytest
from families import of_transformers

from fedpgp import assets
from fedpgp.cli import checks as doctor


@pytest.fixture
def ask(command, backbone, monkeypatch):
    """Run `fedpgp doctor --json` with a new cache, and return the exit code and the findings by name."""
    monkeypatch.setattr("fedpgp.backbone.load_backbone", lambda *_: backbone)

    def call(*arguments):
        place = [] if "--cache-dir" in arguments else ["--cache-dir", "features"]
        ended = command("doctor", "--json", *place, *arguments)
        content = json.loads(ended.out)
        assert content["ok"] == (ended.code == 0)
        return ended.code, {finding["name"]: finding for finding in content["findings"]}

    return call


@pytest.fixture
def hub(monkeypatch):
    """A model hub on this machine that answers with a chosen code."""

    class Answer(http.server.BaseHTTPRequestHandler):
        code = 200

        def do_HEAD(self):
            self.send_response(self.code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield Answer
    server.shutdown()
    server.server_close()


def test_a_machine_that_works(ask):
    code, found = ask()
    assert code == 0
    assert {"fedpgp", "python", "torch", "cpu", "pictoclip", "pictograms", "feature cache", "classify"} <= set(found)
    assert "1 of 20" in found["classify"]["value"]
    assert "model hub" not in found


def test_the_table_reports_that_everything_works(command):
    ended = command("doctor", "--cache-dir", "features")
    assert ended.code == 0
    assert "self-test" in ended.out
    assert "works" in ended.err


def test_a_damaged_file_is_named_and_the_other_checks_run(ask, monkeypatch, tmp_path):
    sums = dict(json.loads((assets.DIRECTORY / "checksums.json").read_text()))
    first = next(name for name in sums if name.startswith("clip-tokenizer/"))
    monkeypatch.setattr(assets, "checksums", lambda name: {first: "0"} if name == "clip-tokenizer" else {})
    code, found = ask()
    assert code == 1
    assert Path(first).name in found["clip-tokenizer"]["value"]
    assert "install" in found["clip-tokenizer"]["advice"]
    assert found["classify"]["state"] == "ok"


def test_a_cache_that_cannot_be_written(ask, tmp_path):
    (tmp_path / "file").write_text("")
    code, found = ask("--cache-dir", str(tmp_path / "file"))
    assert code == 1
    assert found["feature cache"]["state"] == "wrong"
    assert "--cache-dir" in found["feature cache"]["advice"]


def test_a_missing_package_is_wrong_and_a_missing_extra_or_a_full_disk_is_a_note(ask, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"odd": "something odd"})
    monkeypatch.setattr(doctor, "requires", lambda _: ["no-such-package>=1; extra == 'odd'", "torch>=2"])
    monkeypatch.setattr(doctor, "ROOM", 10**18)
    code, found = ask()
    assert code == 0
    assert found["odd"]["state"] == "note"
    assert ".[odd]" in found["odd"]["advice"]
    assert "cache clear" in found["free for runs"]["advice"]
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    code, found = ask()
    assert code == 1
    assert found["no-such-package"]["state"] == "wrong"


def test_whatever_a_check_raises_is_a_finding(monkeypatch):
    def broken():
        raise ImportError("libcudart.so is missing")
        yield

    monkeypatch.setattr(doctor, "_devices", broken)
    found = list(doctor.examine(Path("none")))
    fault = next(finding for finding in found if finding.group == "devices")
    assert fault.state == "wrong"
    assert "libcudart.so" in fault.value
    assert Counter(finding.group for finding in found)["self-test"] == 1


@pytest.mark.parametrize(("code", "expected"), [(200, "ok"), (503, "wrong")])
def test_the_hub_is_asked_if_wanted(ask, hub, code, expected):
    hub.code = code
    ended, found = ask("--network")
    assert found["model hub"]["state"] == expected
    assert str(code) in found["model hub"]["value"]
    assert ended == (expected == "wrong")


def test_a_hub_out_of_reach(ask, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, found = ask("--network")
    assert code == 1
    assert "HF_ENDPOINT" in found["model hub"]["advice"]


def test_no_hub_is_asked_offline(ask, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, found = ask("--network")
    assert code == 0
    assert found["model hub"]["state"] == "note"


def test_extras_are_those_of_the_package_with_what_they_bring_themselves():
    provided = set(metadata("fedpgp").get_all("Provides-Extra"))
    assert set(doctor.EXTRAS) == provided - {"dev", "docs", "tools"}  # these extras are for developers of fedpgp
    found = {extra: set(doctor._packages("fedpgp", extra)) for extra in doctor.EXTRAS}
    assert {"alembic", "mlflow-skinny", "wandb"} <= found["tracking"]
    assert {"flwr", "ray"} <= found["simulation"]
    assert "flwr" in found["flower"] and "ray" not in found["flower"]
    assert not any("torch" in packages for packages in found.values())


def test_a_checkpoint_is_described_with_the_methods_that_fit(command, tmp_path):
    ended = command("doctor", "--json", "--checkpoint", "pictoclip")
    found = {finding["name"]: finding["value"] for finding in json.loads(ended.out)["findings"]}
    assert ended.code == 0 and found["licence"] == "apache-2.0" and "fast encoder" in found["text tower"]
    assert "fedmaple" in found["methods that fit"] and "do not fit" not in found
    assert "48 × 48 pixels, 128 features, 36 patches" in found["image tower"] and "ms and" in found["training step"]

    directory = str(of_transformers("chinese_clip", tmp_path).directory)
    ended = command("doctor", "--json", "--checkpoint", directory)
    found = {finding["name"]: finding["value"] for finding in json.loads(ended.out)["findings"]}
    assert "class by class" in found["text tower"] and "fedplot" in found["methods that fit"]
    assert "fedmaple" in found["do not fit"] and "changes the image tower" in found["do not fit"]
    entries = {
        entry["name"]: entry for entry in json.loads(command("methods", "--json", "--checkpoint", directory).out)
    }
    assert not entries["fedpgp"]["misfit"] and entries["fedpgp"]["shared"] == 16 * 32
    assert entries["fedvpt"]["shared"] is None and "changes the image tower" in entries["fedvpt"]["misfit"]
    listing = " ".join(command("methods", "--checkpoint", directory).out.split())
    assert "does not fit" in listing and "changes the image tower" in listing
