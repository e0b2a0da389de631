"""Atomic files and directories, and tensors in files."""

import os
from pathlib import Path

import pytest
import torch
from raising import raises
from safetensors.torch import load

from fedpgp.errors import OutputError
from fedpgp.runtime.files import new_directory, tensor_bytes, write
from fedpgp.runtime.tensor_files import TensorFile


def test_tensors_that_share_memory_or_are_transposed_are_written_and_read() -> None:
    made = torch.arange(6.0).reshape(2, 3)
    read = load(tensor_bytes({"t": made.T, "one": made, "other": made}))
    assert all(torch.equal(read[name], tensor) for name, tensor in (("t", made.T), ("one", made), ("other", made)))


def test_a_tensor_file_reads_single_tensors(tmp_path: Path) -> None:
    made = {"a": torch.ones(2), "b/c": torch.zeros(3, 1)}
    write(tmp_path / "t", tensor_bytes(made))
    found = TensorFile(tmp_path / "t")
    assert (list(found), len(found)) == (["a", "b/c"], 2)
    assert torch.equal(found["b/c"], made["b/c"])
    with pytest.raises(KeyError):
        found["c"]
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with raises(OutputError, where=str(tmp_path / "t"), remedy="restore it"):
        TensorFile(tmp_path / "t")


def test_a_failed_write_keeps_the_older_file(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def broken(source, target):  # type: ignore[no-untyped-def]
        raise OSError(28, "No space left on device")

    write(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_directory_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    def fill(content: str, fail: bool) -> None:
        with new_directory(tmp_path / "d") as scratch:
            (scratch / content).write_text("")
            assert not (tmp_path / "d" / content).exists()
            if fail:
                raise ZeroDivisionError

    fill("one", fail=False)
    with pytest.raises(ZeroDivisionError):
        fill("two", fail=True)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["d", "d/one"]
    fill("three", fail=False)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["d", "d/three"]
