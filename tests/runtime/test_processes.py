"""Tests that need the command in separate processes: workers, signals, hash seeds and the wheel."""

import json
import os
import select
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

ROOT = Path(__file__).parents[2]
SHORT = ["federation.rounds=2", "federation.local_epochs=1", "promptfl.learning_rate=0.1", "fedpgp.learning_rate=0.01"]


def command(name: str, *arguments: str, cache: Path) -> list[str]:
    sets = [part for change in SHORT for part in ("--set", change)]  # if a key is set twice, the last value counts
    return [sys.executable, "-m", "fedpgp", name, *sets, *arguments, "--cache-dir", str(cache)]


def artefacts(directory: Path) -> Iterator[bytes]:
    """Yield the results of a run without times."""
    yield (directory / "prompts.safetensors").read_bytes()
    yield (directory / "outcomes.safetensors").read_bytes()
    results = json.loads((directory / "results.json").read_text())
    del results["seconds"]
    yield json.dumps(results).encode()


def test_one_and_two_workers_and_other_hash_seeds_give_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    seen = []
    for hash_seed, workers in ("0", "1"), ("1", "2"):
        output = tmp_path / hash_seed
        subprocess.run(
            command("run", "--method", "fedpgp", "--workers", workers, "-q", "-o", str(output), cache=cache),
            check=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        seen.append(list(artefacts(output)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_the_finished_rounds(workers: str, cache: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("run", "--method", "fedpgp", "--set", "federation.rounds=500", "--workers", workers, "-o", "out",
                cache=cache),
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("fedpgp, seed 0:"):
            break
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("`fedpgp run --resume out`.")
    shown = subprocess.run(
        [sys.executable, "-m", "fedpgp", "show", "out"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "fedpgp, seed 0 was stopped after round" in shown.stderr


def test_workers_end_with_a_killed_parent(cache: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("run", "--method", "fedpgp", "--set", "federation.rounds=500", "--workers", "2", cache=cache),
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("fedpgp, seed 0:"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    waiting = [os.pidfd_open(int(child)) for child in children]  # can be read when the process has ended
    process.kill()
    process.communicate()
    for child in waiting:
        assert select.select([child], [], [], 30)[0], "a worker did not end"
        os.close(child)


def test_an_unguarded_script_gets_an_error_with_a_remedy(cache: Path, tmp_path: Path) -> None:
    """Its worker processes run the script again and end; the script must not wait for them for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import fedpgp\nfedpgp.run('promptfl', changes=['federation.rounds=1'], cache={str(cache)!r}, workers=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "`if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


def test_the_wheel_contains_everything_for_a_first_run(cache: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 45e6
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", "import fedpgp; print(fedpgp.__file__); from fedpgp.cli import main; main()",
         "run", "--method", "zero-shot", "--json", "-o", "out", "--cache-dir", str(cache)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, printed = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "installed"))
    assert json.loads(printed)["rows"][0]["method"] == "zero-shot"


def test_a_method_of_a_file_trains_in_several_processes(tmp_path, cache):
    """The other processes know its class and compute the same bytes."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from typing import ClassVar\n"
        "from fedpgp.methods import PromptFL\n\n\n"
        "class Mine(PromptFL):\n"
        '    """PromptFL by another name."""\n\n'
        '    name: ClassVar[str] = "mine"\n',
        encoding="utf-8",
    )
    outputs = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        arguments = ("--method", f"{path}:Mine", "--workers", workers, "-o", str(out), "-q")
        subprocess.run(command("run", *arguments, cache=cache), check=True, cwd=tmp_path)
        outputs.append((out / "prompts.safetensors").read_bytes())
    assert outputs[0] == outputs[1]
