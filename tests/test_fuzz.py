"""The fuzzers of tools/fuzz.py: a few inputs of each kind, and their report."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest

from fedpgp.errors import FedPGPError

sys.path.append(str(Path(__file__).parents[1] / "tools"))
fuzz = importlib.import_module("fuzz")
FEW = {"cifar": 60, "tensors": 100, "safetensors": 200, "tables": 30, "updates": 100}  # inputs; others take seconds


@pytest.mark.parametrize(
    "kind", [*FEW, *(pytest.param(kind, marks=pytest.mark.slow) for kind in fuzz.KINDS if kind not in FEW)]
)
def test_only_errors_of_our_own_occur(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = dict(fuzz.trials(kind, 0, iter(range(FEW.get(kind, 40 if kind == "finished-run" else 15))), tmp_path))
    outcomes = {*found.values()}
    assert "refused" in outcomes and outcomes <= {"", "refused"}
    # Nearly all damaged models of SentencePiece are refused.
    assert "" in outcomes or kind == "sentence-pieces", "some inputs are harmless"


def test_faults_and_memory_that_was_taken_are_reported(monkeypatch, tmp_path):
    numbers = itertools.count()

    def attack(draw):
        if (number := next(numbers)) == 1:
            raise ValueError("a fault")
        if number == 2:
            raise FedPGPError("a line", remedy="x") from MemoryError()

    monkeypatch.setitem(fuzz.KINDS, "made-up", lambda directory: attack)
    (first, second, third) = (outcome for _, outcome in fuzz.trials("made-up", 0, iter(range(3)), tmp_path))
    assert first == "" and "ValueError: a fault" in second and "too much memory" in third


@pytest.mark.slow
def test_the_program_counts_inputs_and_measures_memory(capfd):
    assert fuzz.main(["tensors", "--inputs", "30"]) == 0
    assert "30 inputs" in capfd.readouterr().out
