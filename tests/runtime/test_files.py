"""Files are whole or not there, and the streamed safetensors are what the library reads."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load

from fedpgp.runtime.files import DTYPES, TensorFile, new_directory, safetensors, write

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(SHAPES, st.sampled_from(list(DTYPES))),
    max_size=6,
)


@given(TENSORS)
def test_streamed_tensors_are_read_by_the_library(shapes: dict[str, tuple[list[int], torch.dtype]]) -> None:
    made = {name: (100 * torch.rand(shape)).to(dtype) for name, (shape, dtype) in shapes.items()}
    found = load(b"".join(safetensors(made)))
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_transposed_tensor_is_written_as_it_is_read() -> None:
    made = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(load(b"".join(safetensors({"t": made})))["t"], made)


def test_a_tensor_file_reads_what_is_asked_for(tmp_path: Path) -> None:
    made = {"a": torch.ones(2), "b/c": torch.zeros(3, 1)}
    write(tmp_path / "t", safetensors(made))
    found = TensorFile(tmp_path / "t")
    assert (list(found), len(found)) == (["a", "b/c"], 2)
    assert torch.equal(found["b/c"], made["b/c"])
    with pytest.raises(KeyError):
        found["c"]
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        TensorFile(tmp_path / "t")


def test_a_file_that_could_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield b"new"
        raise OSError(28, "No space left on device")

    write(tmp_path / "f", b"old")
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "f", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_directory_takes_its_name_when_it_is_filled(tmp_path: Path) -> None:
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
