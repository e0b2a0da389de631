"""Finished runs get more rounds, to the same bytes as if they had been asked for in the beginning."""

import json
from pathlib import Path

import pytest
from commands import Command, refused
from raising import raises
from test_resume import artefacts, stopping
from tiny import SHORT_RUN

import fedpgp
from fedpgp.errors import OutputError
from fedpgp.runs import extend

pytestmark = pytest.mark.usefixtures("small")

METHODS = ["fedpgp", "local", "zero-shot", "centralized"]


def finished(output: Path, cache: Path, rounds: int, methods: list[str] = METHODS, *more: str) -> Path:
    changes = [*SHORT_RUN, f"federation.rounds={rounds}", "federation.participation=0.4", *more]
    fedpgp.compare(methods, 1, changes=changes, output=output, cache=cache)
    return output


def results(directory: Path) -> dict[str, object]:
    """Everything but what differs: config.toml names another origin, and the old last round was evaluated."""
    found = {name: content for name, content in artefacts(directory).items() if "config.toml" not in name}
    return {name: content[-1] if name.endswith("rounds.jsonl") else content for name, content in found.items()}


def test_a_comparison_with_more_rounds_is_the_one_with_all_of_them(tmp_path: Path, cache: Path) -> None:
    longer = finished(tmp_path / "longer", cache, 2)
    (longer / "notes.txt").write_text("mine")
    fedpgp.resume(longer, more_rounds=1, cache=cache)
    assert (longer / "notes.txt").read_text() == "mine"
    (longer / "notes.txt").unlink()
    assert results(longer) == results(finished(tmp_path / "whole", cache, 3))
    provenance = json.loads((longer / "fedpgp/seed-0/provenance.json").read_text())
    assert [step["from_round"] for step in provenance["extended"]] == [2]


def test_nothing_changes_where_one_of_the_runs_cannot_be_continued(tmp_path: Path, cache: Path) -> None:
    output = finished(tmp_path / "out", cache, 1, ["promptfl", "zero-shot"])
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with stopping(extend, "begin", 2):
        fedpgp.resume(output, more_rounds=1, cache=cache)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("promptfl", "federation.aggregator=fedavgm", "fedavgm"),
        ("promptfl", "federation.aggregator=scaffold", "scaffold"),
        ("promptfl", "federation.optimizer_state=keep", "federation.optimizer_state"),
        ("fedpgp", "fedpgp.schedule=cosine", "schedule"),
        ("pfedmoap", "task.shots=2", "nearest-experts"),
        ("fedpromptsrc", "task.shots=2", "number of rounds"),
    ],
)
def test_what_a_finished_run_does_not_have_is_told(
    method: str, change: str, why: str, tmp_path: Path, cache: Path, command: Command
) -> None:
    over = [f"{method}.schedule_over=rounds"] if "schedule" in change else []
    finished(tmp_path / "out", cache, 1, [method], change, "federation.participation=1.0", *over)
    ended = command("compare", "--resume", "out", "--rounds", "+2", "--quiet")
    assert ended.code == 2 and why in ended.err and "--set federation.rounds=3" in ended.err


def test_an_unfinished_run_is_finished_first(tmp_path: Path, cache: Path, command: Command) -> None:
    run = fedpgp.rounds("promptfl", changes=SHORT_RUN, output=tmp_path / "out", cache=cache)
    next(run)
    run.close()
    with raises(OutputError, where="out", remedy=f"`fedpgp run --resume {tmp_path / 'out'}`"):
        fedpgp.resume(tmp_path / "out", more_rounds=1, cache=cache)
    for rounds in ("3", "+0", "+ 1"):
        refused(command("run", "--resume", "out", "--rounds", rounds), "--rounds", repr(rounds), "+10")
    refused(command("run", "-m", "fedpgp", "--rounds", "+2"), "--rounds", "'+2'")
