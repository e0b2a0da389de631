"""Calls of a reporter, and a run that its caller iterates round by round."""

from pathlib import Path

import pytest
import torch
from raising import raises
from test_resume import artefacts
from tiny import SHORT_RUN, bits

import fedpgp
from fedpgp.errors import ConfigError, InUseError, OutputError
from fedpgp.reporting import Silent

pytestmark = pytest.mark.usefixtures("small")


class Recording(Silent):
    """Keep all calls; an error after a chosen round stops the run."""

    def __init__(self, stop_after: int = -1) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.records: list[dict] = []
        self.runs: list[fedpgp.Run] = []
        self._stop_after = stop_after

    def begin(self, method, seed, config):
        self.heard.append(("begin", method, seed, config.federation.rounds))

    def round(self, method, seed, record):
        self.heard.append(("round", method, seed, record["round"]))
        self.records.append(dict(record))
        if record["round"] == self._stop_after:
            raise RuntimeError("stopped")

    def finish(self, run):
        self.heard.append(("finish", run.method, run.seed, run.results["rounds"]))
        self.runs.append(run)


def test_a_reporter_is_called_for_every_run_from_begin_to_finish(cache: Path) -> None:
    heard = Recording()
    compared = fedpgp.compare(["zero-shot", "fedpgp"], 2, changes=SHORT_RUN, cache=cache, reporter=heard)
    each = {"zero-shot": [0], "fedpgp": [1, 2]}
    assert heard.heard == [
        event
        for seed in (0, 1)
        for name, numbers in each.items()
        for event in (
            ("begin", name, seed, 2),
            *(("round", name, seed, number) for number in numbers),
            ("finish", name, seed, numbers[-1]),
        )
    ]
    assert heard.records == [record for run in compared.runs for record in run.rounds]
    assert [run.row for run in heard.runs] == compared.rows


def test_an_error_of_a_reporter_stops_the_run_and_only_new_rounds_are_reported_later(
    cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        fedpgp.run("fedpgp", changes=SHORT_RUN, cache=cache, output=tmp_path / "out", reporter=Recording(1))
    heard = Recording()
    fedpgp.resume(tmp_path / "out", cache=cache, reporter=heard)
    assert [event[0::3] for event in heard.heard] == [("begin", 2), ("round", 2), ("finish", 2)]


def test_a_run_round_by_round_does_not_depend_on_what_the_caller_does_between_rounds(
    cache: Path, compared: Path
) -> None:
    """The caller uses another run, gradients, and the global generator of PyTorch."""
    stream = fedpgp.rounds("fedpgp", 1, changes=SHORT_RUN, cache=cache)
    assert iter(stream) is stream
    first = next(stream)
    torch.manual_seed(17)
    weight = torch.ones(1, requires_grad=True)
    (2 * weight).backward()
    assert weight.grad == 2
    fedpgp.run("promptfl", changes=[*SHORT_RUN, "federation.rounds=1"], cache=cache)
    records = [first, *stream]
    whole = fedpgp.load_run(compared / "fedpgp/seed-1")
    assert list(stream.run.rounds) == records
    assert [record["cm"] for record in records] == [record["cm"] for record in whole.rounds]
    assert bits(stream.run.prompts) == bits(whole.prompts)
    assert next(stream, None) is None


def test_a_closed_stream_is_resumed(cache: Path, tmp_path: Path, compared: Path) -> None:
    stream = fedpgp.rounds("fedpgp", changes=SHORT_RUN, cache=cache, output=tmp_path / "out")
    assert next(stream)["round"] == 1
    with pytest.raises(InUseError):
        fedpgp.resume(tmp_path / "out", cache=cache)
    stream.close()
    with raises(OutputError, remedy="`fedpgp.resume(output)`"):
        _ = stream.run
    fedpgp.resume(tmp_path / "out", cache=cache)
    found, whole = (artefacts(where) for where in (tmp_path / "out", compared / "fedpgp/seed-0"))
    assert found.pop("config.toml") != whole.pop("config.toml")  # a comparison has the settings of all methods
    assert found == whole


def test_what_cannot_be_run_is_refused_before_the_first_round(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="fedpgq"):
        fedpgp.rounds("fedpgq")
    with raises(ConfigError, where="seed", allowed="0 or more", got=-1):
        fedpgp.rounds("fedpgp", -1)
    with raises(OutputError, where="out", remedy="--force"):
        fedpgp.rounds("fedpgp", output=tmp_path / "out")
