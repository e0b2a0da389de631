"""Results of an earlier version are shown, resumed and reported, see their README.md."""

import json
import shutil
from pathlib import Path

import pytest
from commands import Command

import fedpgp

WRITTEN = Path(__file__).parent.parent / "fixtures" / "run-directories-0.1.0"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def test_a_finished_run_is_loaded_and_shown(written: Path, command: Command) -> None:
    run = fedpgp.load_run(written / "finished")
    assert (run.method, run.seed, len(run.rounds)) == ("fedpgp", 0, 3)
    assert run.prompts["private/2/U"].shape == (16, 4)
    assert run.answers["base/predicted"].shape == (3, run.results["task"]["images"]["base"])
    final = run.results["final"]
    assert f"{final['local']:.1f}" in command("show", str(written / "finished")).out


@pytest.mark.slow
def test_an_unfinished_run_ends_like_the_finished_one(written: Path, cache: Path, command: Command) -> None:
    records = (written / "unfinished" / "rounds.jsonl").read_text().splitlines()
    assert "fedpgp run --resume" in command("show", str(written / "unfinished")).err
    (run,) = fedpgp.resume(written / "unfinished", cache=cache).runs
    assert [json.dumps(record) for record in run.rounds[:2]] == [json.dumps(json.loads(line)) for line in records]
    finished = fedpgp.load_run(written / "finished").results["final"]
    for name in ("local", "base", "novel"):  # on another processor, a few of 2,700 answers may differ
        assert run.results["final"][name] == pytest.approx(finished[name], abs=0.5)


@pytest.mark.slow
def test_an_unfinished_sweep_is_resumed_and_a_run_is_reported(written: Path, cache: Path, command: Command) -> None:
    sweep = fedpgp.resume_sweep(written / "sweep", cache=cache)
    assert [row["fedpgp.mu"] for row in sweep.rows()] == ["0.5", "1.0"]
    assert (written / "sweep" / "sweep.csv").exists()
    page = written / "page.html"
    assert command("report", str(written / "finished"), "-o", str(page)).code == 0
    assert "fedpgp" in page.read_text(encoding="utf-8")
