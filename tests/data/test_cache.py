"""`fedpgp cache`: entries that it lists and removes, and the lock that two writers share."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from commands import Command
from filelock import FileLock
from raising import raises
from safetensors.torch import save_file

from fedpgp.data import cache
from fedpgp.data.cache import CacheEntry, Kept, entries, versions
from fedpgp.errors import OutputError


@pytest.fixture
def command(command: Command, tmp_path: Path) -> Command:
    """Run `fedpgp cache ARGUMENTS`."""
    return lambda *arguments: command("cache", *arguments, "--cache-dir", str(tmp_path))


def entry(directory: Path, split: str = "train", **changes: str) -> CacheEntry:
    origin = {"format": cache.FORMAT, "data": "pets/large", "split": split, "view": "0", "versions": versions()}
    return CacheEntry(directory, {**origin, "encoder": "0123456789abcdef", **changes})


def kept(images: int) -> Kept:
    return Kept(torch.rand(images, 4), {})


@pytest.fixture
def four(tmp_path: Path) -> dict[str, CacheEntry]:
    """Return an entry of every state; there are also files of other programs."""
    made = {
        "current": entry(tmp_path),
        "stale": entry(tmp_path, "test", versions="torch 1.0"),
        "unfinished": entry(tmp_path, "validation", view="2"),
        "damaged": entry(tmp_path, encoder="another"),
    }
    for state in ("current", "stale"):
        made[state].save(kept(3))
    made["unfinished"].save(kept(2), range(0, 2))
    made["damaged"].file.write_bytes(b"nothing")
    save_file({"features": torch.rand(2, 2)}, tmp_path / "mine.safetensors")
    (tmp_path / "notes").mkdir()
    return made


def test_other_users_can_read_an_entry_if_the_umask_allows_it(tmp_path: Path) -> None:
    entry(tmp_path).save(kept(3))
    (tmp_path / "new").touch()
    assert entry(tmp_path).file.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_lists_every_entry_with_its_state(command: Command, four: dict[str, CacheEntry], tmp_path: Path) -> None:
    os.utime(four["stale"].file, (time.time(), time.time() + 60))
    code, printed, _ = command("list", "--json")
    listed = json.loads(printed)
    assert code == 0
    assert {row["state"] for row in listed} == set(four)
    assert listed[0]["state"] == "stale"  # the last used
    found = {row["state"]: row for row in listed}
    assert [found[state]["images"] for state in four] == [3, 3, 2, 0]
    assert found["current"]["data"] == "pets/large"
    assert found["current"]["bytes"] == four["current"].file.stat().st_size
    assert (found["unfinished"]["split"], found["unfinished"]["view"]) == ("validation", 2)
    assert found["stale"]["versions"] == "torch 1.0"
    code, printed, told = command("list")
    assert code == 0
    for text in ("pets/large", "validation, view 2", "01234567", "torch 1.0", "damaged", "unfinished"):
        assert text in printed
    assert told.startswith("4 entries, ")


def test_two_data_sets_of_one_name_are_told_apart(command: Command, tmp_path: Path) -> None:
    for fingerprint in ("aaaaaaaa00", "bbbbbbbb00"):
        entry(tmp_path, images=fingerprint).save(kept(1))
    assert {row.fingerprint for row in entries(tmp_path)} == {"aaaaaaaa00", "bbbbbbbb00"}
    _, printed, _ = command("list")
    assert "aaaaaaaa" in printed and "bbbbbbbb" in printed


def test_clear_stale_leaves_what_can_be_used(command: Command, four: dict[str, CacheEntry], tmp_path: Path) -> None:
    code, _, told = command("clear", "--stale", "--yes")
    assert code == 0 and told.startswith(f"Removed 2 of 2 entries from {tmp_path}.\n")
    assert {row.state for row in entries(tmp_path)} == {"current", "unfinished"}
    assert command("clear", "--stale", "--yes")[2].startswith("There is nothing to remove")


def test_clear_removes_only_what_this_library_wrote(
    command: Command, four: dict[str, CacheEntry], tmp_path: Path
) -> None:
    assert command("clear", "--yes")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "notes"]


def test_clear_asks_first(command: Command, four: dict[str, CacheEntry], tmp_path: Path) -> None:
    code, _, told = command("clear")
    assert code == 2
    assert "--yes" in told
    assert len(entries(tmp_path)) == 4


def test_clear_leaves_what_is_being_encoded(command: Command, four: dict[str, CacheEntry], tmp_path: Path) -> None:
    with four["unfinished"].locked(lambda _: None):
        code, _, told = command("clear", "--yes")
    assert code == 0
    assert "3 of 4" in told
    assert "Another process uses pets" in told
    assert [row.state for row in entries(tmp_path)] == ["unfinished"]


def test_list_of_a_path_that_is_not_a_directory(command: Command, tmp_path: Path) -> None:
    assert entries(tmp_path / "absent") == []
    (tmp_path / "file").write_text("")
    with raises(OutputError, where=str(tmp_path / "file"), remedy="--cache-dir"):
        entries(tmp_path / "file")


def test_last_used_is_when_it_was_read(tmp_path: Path) -> None:
    made = entry(tmp_path)
    made.save(kept(2))
    os.utime(made.file, (0, 0))
    assert made.load() is not None
    (listed,) = entries(tmp_path)
    assert listed.last_used == pytest.approx(time.time(), abs=60)


def test_second_writer_says_that_it_waits(tmp_path: Path) -> None:
    made = entry(tmp_path)
    other = FileLock(made.file.with_suffix(".lock"))
    other.acquire()
    said = []

    def hear(text: str) -> None:
        said.append(text)
        other.release()

    with made.locked(hear):
        pass
    (notice,) = said
    assert "waiting" in notice and "train images" in notice
