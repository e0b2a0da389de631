"""Stopped runs and comparisons are resumed to the same bytes, or refused with a reason."""

import csv
import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import count
from pathlib import Path

import pytest
from raising import raises
from tiny import SHORT_RUN, use_small_source

import fedpgp
from fedpgp.backbone import Backbone
from fedpgp.data.sources import Source
from fedpgp.errors import InUseError, OutputError
from fedpgp.federation import rounds
from fedpgp.federation.state import State
from fedpgp.results import provenance as origin
from fedpgp.results import run as results
from fedpgp.results import run_store as directory
from fedpgp.runs import tasks as run_tasks
from fedpgp.runs import work
from fedpgp.runtime import files

pytestmark = pytest.mark.usefixtures("small")

TIMES = {"seconds", "seconds_training", "seconds_evaluation"}
CHANGES = [*SHORT_RUN, "federation.rounds=3", "federation.eval_every=2"]


class StoppedError(Exception):
    """Replaces a kill, within one process."""


@contextmanager
def stopping(owner: object, name: str, number: int) -> Iterator[None]:
    """Let the call with this number of a function raise an error, which stops the run."""
    original, calls = getattr(owner, name), count(1)

    def counted(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            raise StoppedError
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(owner, name, counted)
        yield


def begin(output: Path, cache: Path) -> None:
    fedpgp.run("fedpgp", 3, changes=CHANGES, output=output, cache=cache)


def artefacts(directory: Path) -> dict[str, object]:
    """Return the content of every file of a directory, without times and provenance, which a resumption changes."""

    def timeless(content: object) -> object:
        if isinstance(content, dict):
            return {key: timeless(value) for key, value in content.items() if key not in TIMES}
        return [timeless(value) for value in content] if isinstance(content, list) else content

    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.name in ("results.json", "rounds.jsonl", "comparison.json"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [timeless(json.loads(line)) for line in lines]
        elif path.suffix == ".csv":
            with path.open() as file:
                found[name] = [timeless(row) for row in csv.DictReader(file)]
        elif path.is_file():
            times = path.name in ("provenance.json", "comparison.md", "comparison.tex", "comparison.html")
            found[name] = None if times else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def made(
    small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Three states of the same run: whole is finished, stopped is in round 2, trained has no result files yet."""
    places = {name: tmp_path_factory.mktemp("resume") / name for name in ("whole", "stopped", "trained")}
    with pytest.MonkeyPatch.context() as patch:
        use_small_source(patch, small_source, backbone)
        begin(places["whole"], cache)
        with stopping(rounds, "train_clients", 5):
            begin(places["stopped"], cache)
        with stopping(work, "write_run", 1):
            begin(places["trained"], cache)
    return places


@pytest.fixture
def whole(made: dict[str, Path]) -> dict[str, object]:
    return artefacts(made["whole"])


@pytest.fixture
def trained(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a run with finished rounds and without result files."""
    return Path(shutil.copytree(made["trained"], tmp_path / "out"))


@pytest.fixture
def stopped(made: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of a run that was stopped in its second round; its files must survive the test."""
    shutil.copytree(made["stopped"], tmp_path / "out")
    yield tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.toml", "state.sqlite"}


@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_stopped_run_ends_like_a_run_that_was_not_stopped(
    at: int, whole: dict[str, object], cache: Path, tmp_path: Path
) -> None:
    """Before the first round, in the second, and in the last."""
    with stopping(rounds, "train_clients", at):
        begin(tmp_path / "out", cache)
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"rounds.jsonl"} == {"config.toml", "state.sqlite"}
    fedpgp.resume(tmp_path / "out", cache=cache)
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_run_stopped_before_a_file_is_renamed_is_resumed(
    at: int, trained: Path, whole: dict[str, object], cache: Path
) -> None:
    """The last of the five files is results.json, which marks the run as finished."""
    with stopping(files.os, "replace", at):
        fedpgp.resume(trained, cache=cache)
    assert not (trained / "results.json").exists()
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_run_stopped_before_its_state_is_removed_is_resumed(
    trained: Path, whole: dict[str, object], cache: Path
) -> None:
    with stopping(Path, "unlink", 1):
        fedpgp.resume(trained, cache=cache)
    assert (trained / "results.json").exists() and (trained / "state.sqlite").exists()
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_stopped_comparison_ends_like_one_that_was_not_stopped(cache: Path, tmp_path: Path) -> None:
    """It is stopped in the first of two methods with the second seed, and then before its last file."""
    out = tmp_path / "out"

    def compare(output: Path) -> None:
        short = [*SHORT_RUN, "federation.rounds=1"]
        fedpgp.compare(["promptfl", "zero-shot"], [4, 2], changes=short, output=output, cache=cache)

    compare(tmp_path / "whole")
    whole = artefacts(tmp_path / "whole")
    with stopping(rounds, "train_clients", 5):
        compare(out)
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    found = fedpgp.load_comparison(out)
    assert (len(found.runs), len(found.unfinished)) == (len(finished), 4 - len(finished)) == (2, 2)
    fedpgp.resume(out, cache=cache)
    assert artefacts(out) == whole
    (out / "comparison.json").unlink()
    fedpgp.resume(out, cache=cache)
    assert artefacts(out) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())  # they are not written again


def test_another_config_is_refused(stopped: Path, cache: Path) -> None:
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 30"))
    with raises(OutputError, where="config.toml: federation.rounds", allowed="3", got=30):
        fedpgp.resume(stopped, cache=cache)
    file.write_text(file.read_text().replace("rounds = 30 ", "rounds = 3\n# a remark"))
    assert directory.is_unfinished(stopped)


def test_runs_of_different_configs_are_not_one_comparison(cache: Path, tmp_path: Path) -> None:
    for name, changes in (("a", SHORT_RUN), ("b", [*SHORT_RUN, "fedpgp.mu=2"])):
        with stopping(rounds, "train_clients", 1):
            fedpgp.compare(["promptfl", "fedpgp"], changes=changes, output=tmp_path / name, cache=cache)
    shutil.rmtree(tmp_path / "a/fedpgp")
    shutil.copytree(tmp_path / "b/fedpgp", tmp_path / "a/fedpgp")
    with raises(OutputError, where="fedpgp/seed-0", problem="promptfl/seed-0"):
        fedpgp.resume(tmp_path / "a", cache=cache)


def test_another_checkpoint_or_other_images_are_refused(
    stopped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, small_source: Source, backbone: Backbone
) -> None:
    other = replace(small_source.train, fingerprint="another")
    with monkeypatch.context() as patch:
        patch.setattr(run_tasks, "load_source", lambda data, splits: replace(small_source, train=other))
        with raises(OutputError, where="out", problem="images of data.source"):
            fedpgp.resume(stopped, cache=cache)
    with monkeypatch.context() as patch:
        patch.setitem(vars(backbone), "fingerprint", "another")
        with raises(OutputError, where="out", problem="checkpoint of backbone.checkpoint"):
            fedpgp.resume(stopped, cache=cache)


def test_a_damaged_state_is_refused(stopped: Path, cache: Path) -> None:
    file = stopped / "state.sqlite"
    file.write_bytes(file.read_bytes()[:5000])
    for call in (lambda: fedpgp.resume(stopped, cache=cache), lambda: fedpgp.load_comparison(stopped)):
        with pytest.raises(OutputError, match=r"state\.sqlite"):
            call()


def test_file_names_are_flushed_before_the_state_is_removed(
    trained: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    replace_, flush, remove = files.os.replace, files.os.fsync, State.remove

    def renamed(old: Path, new: Path) -> None:
        happened.append(Path(new).name)
        replace_(old, new)

    def flushed(opened: int) -> None:
        happened.append("directory" if stat.S_ISDIR(files.os.fstat(opened).st_mode) else "file")
        flush(opened)

    monkeypatch.setattr(files.os, "replace", renamed)
    monkeypatch.setattr(files.os, "fsync", flushed)
    monkeypatch.setattr(State, "remove", lambda state: (happened.append("removed"), remove(state)))
    fedpgp.resume(trained, cache=cache)
    assert happened[-4:] == ["file", "results.json", "directory", "removed"]


def test_a_second_process_is_refused(stopped: Path, cache: Path) -> None:
    with (
        State.open(stopped / "state.sqlite"),
        pytest.raises(InUseError, match="out"),
    ):
        fedpgp.resume(stopped, cache=cache)


def test_an_unfinished_run_is_not_loaded(stopped: Path) -> None:
    with raises(OutputError, where="out", remedy=f"`fedpgp run --resume {stopped}`"):
        fedpgp.load_run(stopped)


class Listening(fedpgp.Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_another_version_of_torch_is_reported_and_recorded(stopped: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    with State.open(tmp_path / "copy/state.sqlite") as state:
        begun = state.origin()
        begun["provenance"]["packages"]["torch"] = "1.0"
        state.keep_origin(begun)
    listening = Listening()
    (run,) = fedpgp.resume(tmp_path / "copy", cache=cache, reporter=listening).runs
    (notice,) = listening.notices
    assert all(text in notice for text in (str(tmp_path / "copy"), "torch 1.0", version("torch")))
    assert run.provenance["packages"]["torch"] == "1.0"
    assert [session["packages"]["torch"] for session in run.provenance["resumed"]] == [version("torch")]


def test_a_full_disk_while_the_files_are_written_loses_nothing(
    trained: Path, whole: dict[str, object], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        if path.name == "prompts.safetensors":
            raise OSError(28, "No space left on device")
        files.write(path, content)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(directory, "write", full)
        with raises(OutputError, where="out", problem="No space left on device", remedy=f"--resume {trained}"):
            fedpgp.resume(trained, cache=cache)
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_full_disk_at_the_start_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(origin, "write", full)
    with raises(OutputError, where="out", problem="No space left on device", remedy="-o"):
        begin(tmp_path / "out", cache)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"nothing that SQLite knows" * 100], ids=["stopped", "damaged"])
def test_force_replaces_a_stopped_run(damage: bytes, stopped: Path, cache: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(stopped, tmp_path / "other"))
    if damage:
        (other / "state.sqlite").write_bytes(damage)
    fedpgp.run("zero-shot", changes=SHORT_RUN, output=other, force=True, cache=cache)
    assert fedpgp.load_run(other).method == "zero-shot"
    assert not (other / "state.sqlite").exists()


def test_force_does_not_replace_a_run_that_another_process_works_on(stopped: Path, cache: Path) -> None:
    """The other process would write into the new directory."""
    with State.open(stopped / "state.sqlite"), pytest.raises(InUseError):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=stopped, force=True, cache=cache)
    assert (stopped / "state.sqlite").exists()


@pytest.mark.parametrize("name", ["results.json", "comparison.json", "state.sqlite", "plan.json", "config.toml"])
def test_a_file_of_the_same_name_does_not_make_a_directory_ours(name: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}" if name.endswith("json") else "")
    with raises(OutputError, where="out", problem="did not write", remedy="-o"):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=tmp_path / "out", force=True, cache=cache)


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"seeds": {"Fed PGP": [0]}}, "seeds.Fed PGP"),
        ({"seeds": {"../../elsewhere": [0]}}, "seeds.../../elsewhere"),
        ({"seeds": {}}, "seeds"),
        ({"seeds": {"fedpgp": []}}, "seeds.fedpgp"),
        ({"seeds": {"fedpgp": [-1]}}, "seeds.fedpgp[0]"),
        ({"seeds": {"fedpgp": 0}}, "seeds.fedpgp"),
        ({"methods": ["fedpgp"]}, "seeds"),
    ],
)
def test_an_invalid_plan_is_refused(plan: dict[str, object], field: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with raises(OutputError, where=f"plan.json: {field}", remedy="one of its runs"):
        fedpgp.resume(tmp_path, cache=cache)
    with raises(OutputError, where=str(tmp_path), problem="did not write", remedy="-o"):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=tmp_path, force=True, cache=cache)


def test_a_run_in_the_directory_of_another_is_refused(cache: Path, tmp_path: Path) -> None:
    with stopping(rounds, "train_clients", 1):
        fedpgp.compare(["promptfl"], [0, 1], changes=CHANGES, output=tmp_path / "out", cache=cache)
    cells = tmp_path / "out/promptfl"
    shutil.rmtree(cells / "seed-1")
    shutil.copytree(cells / "seed-0", cells / "seed-1")
    with raises(OutputError, where="seed-1", problem="seed 0"):
        fedpgp.resume(tmp_path / "out", cache=cache)


def test_a_round_without_an_evaluation_is_described_by_its_loss() -> None:
    assert results.headline({"round": 1, "loss_task": 1.5, "loss_distance": 0.25}) == "loss 1.750"
    assert results.headline({"round": 1, "loss_ce": 0.5}) == "loss 0.500"
