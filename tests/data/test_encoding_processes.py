"""The feature cache with several processes: two writers, a killed writer, and workers that decode in advance."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpgp.backbone import Backbone
from fedpgp.data import preprocess as decode
from fedpgp.data.features import ViewFeatures
from fedpgp.data.sources import Source

pytestmark = pytest.mark.slow

ENCODE = """
import sys
from pathlib import Path
import torch
from fedpgp.backbone import load_backbone
from fedpgp.data.features import ViewFeatures
from fedpgp.data.sources import pictograms

torch.set_num_threads(1)
say = lambda *report: print(*report, flush=True)
encoder, images = load_backbone("pictoclip").image, pictograms.read().validation
_, new = ViewFeatures(encoder, images, Path(sys.argv[1]), progress=say, notice=say).load()
print("encoded", new)
"""


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ENCODE, str(directory)], stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, pictograms: Source) -> torch.Tensor:
    return ViewFeatures(backbone.image, pictograms.validation, tmp_path_factory.mktemp("whole")).load()[0].features


def test_second_writer_reads_what_the_first_wrote(
    expected: torch.Tensor, backbone: Backbone, pictograms: Source, tmp_path: Path
) -> None:
    both = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.splitlines()[-1] for text in said) == ["encoded 0", "encoded 1440"]
    assert sum("waiting for another process" in text for text in said) == 1
    assert torch.equal(ViewFeatures(backbone.image, pictograms.validation, tmp_path).load()[0].features, expected)


@pytest.mark.parametrize("done", [0, 320, 1024])
def test_killed_writer_goes_on(
    expected: torch.Tensor, backbone: Backbone, pictograms: Source, tmp_path: Path, done: int
) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"encoding validation images {done} "):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob("*.safetensors")) == []
    kept, new = ViewFeatures(backbone.image, pictograms.validation, tmp_path).load()
    assert new <= 1440 - done // 256 * 256
    assert torch.equal(kept.features, expected)


def test_bits_do_not_depend_on_the_number_of_workers(
    backbone: Backbone, pictograms: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictograms.validation.select(np.arange(0, 1440, 7))
    loaders = []

    class Counted(decode.DataLoader):
        def __init__(self, *arguments, **options):
            loaders.append(options["num_workers"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(decode, "DataLoader", Counted)
    monkeypatch.setattr(decode, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(decode, "FEW", 0)
    for view in (0, 1):
        found = [
            ViewFeatures(backbone.image, images, tmp_path / str(workers), workers=workers, view=view).load()[0].features
            for workers in (1, 2)
        ]
        assert torch.equal(*found)
    assert loaders == [2, 2]


def test_script_without_a_guard_is_refused(tmp_path: Path) -> None:
    """The workers run the script again. They must not wait for the lock of the process that waits for them."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        ENCODE.replace("progress=say", "workers=2, progress=say").replace(
            "say =", "import fedpgp.data.preprocess as d; d.WORTH_PROCESSES = d.FEW = 0\nsay ="
        )
    )
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache")], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "`if __name__ == '__main__':`" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_ctrl_c_ends_encoder_and_workers(tmp_path: Path, how: str) -> None:
    script = tmp_path / "guarded.py"
    body = {
        "processes": ENCODE.replace("progress=say", "workers=2, progress=say").replace(
            "say =", "import fedpgp.data.preprocess as d; d.WORTH_PROCESSES = d.FEW = 0\nsay ="
        ),
        "threads": ENCODE.replace("set_num_threads(1)", "set_num_threads(3)"),
    }[how]
    script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in body.splitlines()))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "cache")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("encoding validation images 256 "):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1, said
