"""Stopped runs and comparisons are resumed to the same bytes, or refused with the reason."""

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
from fedpgp.errors import OutputError
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
    """What stands for a kill inside one process."""


@contextmanager
def stopping(owner: object, name: str, number: int) -> Iterator[None]:
    """The number-th call of a function raises instead, and so stops what runs here."""
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
    """Every file of a directory by its name; times left out, and provenance, which tells of the resumption."""

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
            times = path.name in ("provenance.json", "comparison.md", "comparison.tex")
            found[name] = None if times else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def made(
    small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Directories of the same run. whole: it is finished; stopped: in its second round; trained: before its files."""
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
    """A copy of a run whose rounds are finished and whose files are not written."""
    return Path(shutil.copytree(made["trained"], tmp_path / "out"))


@pytest.fixture
def stopped(made: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of a run that was stopped in its second round; nothing of it may be lost."""
    shutil.copytree(made["stopped"], tmp_path / "out")
    yield tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.toml", "state.sqlite"}


@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_stopped_run_ends_as_one_that_was_not(at: int, whole: dict[str, object], cache: Path, tmp_path: Path) -> None:
    """Before the first round, in the second, and in the last."""
    with stopping(rounds, "train_clients", at):
        begin(tmp_path / "out", cache)
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"rounds.jsonl"} == {"config.toml", "state.sqlite"}
    fedpgp.resume(tmp_path / "out", cache=cache)
    assert artefacts(tmp_path / "out") == whole


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_run_stopped_before_one_of_its_files_gets_its_name(
    at: int, trained: Path, whole: dict[str, object], cache: Path
) -> None:
    """The last of the five is results.json, with which the run is finished."""
    with stopping(files.os, "replace", at):
        fedpgp.resume(trained, cache=cache)
    assert not (trained / "results.json").exists()
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_run_stopped_before_its_state_goes(trained: Path, whole: dict[str, object], cache: Path) -> None:
    with stopping(Path, "unlink", 1):
        fedpgp.resume(trained, cache=cache)
    assert (trained / "results.json").exists() and (trained / "state.sqlite").exists()
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_stopped_comparison_ends_as_one_that_was_not(cache: Path, tmp_path: Path) -> None:
    """It is stopped in the first of two methods with the second seed; later a kill comes before its very last file."""
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
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())  # it is left alone


def test_another_config_is_refused(stopped: Path, cache: Path) -> None:
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 30"))
    with pytest.raises(OutputError, match=r"config.toml: federation.rounds is 30, the run was begun with 3: set it"):
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
        with pytest.raises(OutputError, match=r"begun with other images than what data.source names now"):
            fedpgp.resume(stopped, cache=cache)
    with monkeypatch.context() as patch:
        patch.setitem(vars(backbone), "fingerprint", "another")
        with pytest.raises(OutputError, match=r"begun with other checkpoint than what backbone.checkpoint names now"):
            fedpgp.resume(stopped, cache=cache)


def test_a_damaged_state_is_refused(stopped: Path, cache: Path) -> None:
    file = stopped / "state.sqlite"
    file.write_bytes(file.read_bytes()[:5000])
    for call in (lambda: fedpgp.resume(stopped, cache=cache), lambda: fedpgp.load_comparison(stopped)):
        with pytest.raises(OutputError, match=r"state.sqlite is damaged: .*; start the run again"):
            call()


def test_the_names_of_the_files_are_on_the_disk_before_the_state_goes(
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
        pytest.raises(OutputError, match="out is in use: another process works on this run"),
    ):
        fedpgp.resume(stopped, cache=cache)


def test_an_unfinished_run_is_not_loaded(stopped: Path) -> None:
    with pytest.raises(OutputError, match=r"out holds a run that is not finished; go on with: fedpgp run --resume"):
        fedpgp.load_run(stopped)


class Listening(fedpgp.Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def test_another_version_of_torch_is_told_and_noted(stopped: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    with State.open(tmp_path / "copy/state.sqlite") as state:
        begun = state.origin()
        begun["provenance"]["packages"]["torch"] = "1.0"
        state.keep_origin(begun)
    listening = Listening()
    (run,) = fedpgp.resume(tmp_path / "copy", cache=cache, reporter=listening).runs
    begun = f"{tmp_path / 'copy'} was begun with torch 1.0, here is {version('torch')}"
    assert listening.notices == [f"{begun}: the rest may differ in the last bits"]
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
        with pytest.raises(OutputError, match=r"No space left on device; free space, then go on with --resume"):
            fedpgp.resume(trained, cache=cache)
    fedpgp.resume(trained, cache=cache)
    assert artefacts(trained) == whole


def test_a_full_disk_at_the_start_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(origin, "write", full)
    with pytest.raises(OutputError, match=r"results cannot be written to .*: No space left on device; free space"):
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
    """That process would go on writing into what replaces it."""
    with State.open(stopped / "state.sqlite"), pytest.raises(OutputError, match="in use"):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=stopped, force=True, cache=cache)
    assert (stopped / "state.sqlite").exists()


@pytest.mark.parametrize("name", ["results.json", "comparison.json", "state.sqlite", "plan.json", "config.toml"])
def test_a_file_of_the_same_name_does_not_make_a_directory_ours(name: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}" if name.endswith("json") else "")
    with pytest.raises(OutputError, match="holds something that fedpgp did not write"):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=tmp_path / "out", force=True, cache=cache)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"seeds": {"Fed PGP": [0]}}, r"seeds must be those of methods, got \['Fed PGP'\]"),
        ({"seeds": {"../../elsewhere": [0]}}, "seeds must be those of methods"),
        ({"seeds": {}}, "seeds must be those of methods"),
        ({"seeds": {"fedpgp": []}}, "seeds of fedpgp must be numbers"),
        ({"seeds": {"fedpgp": [-1]}}, "seeds of fedpgp must be numbers"),
        ({"seeds": {"fedpgp": 0}}, "int"),
        ({"methods": ["fedpgp"]}, "seeds"),
    ],
)
def test_a_plan_that_is_not_ours_is_refused(plan: dict[str, object], reason: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(OutputError, match=rf"plan\.json is damaged: .*{reason}"):
        fedpgp.resume(tmp_path, cache=cache)
    with pytest.raises(OutputError, match="holds something that fedpgp did not write"):
        fedpgp.run("fedpgp", 3, changes=CHANGES, output=tmp_path, force=True, cache=cache)


def test_a_run_in_the_place_of_another_is_refused(cache: Path, tmp_path: Path) -> None:
    with stopping(rounds, "train_clients", 1):
        fedpgp.compare(["promptfl"], [0, 1], changes=CHANGES, output=tmp_path / "out", cache=cache)
    cells = tmp_path / "out/promptfl"
    shutil.rmtree(cells / "seed-1")
    shutil.copytree(cells / "seed-0", cells / "seed-1")
    with pytest.raises(OutputError, match="begun with seed 0 and stands in the place of seed 1"):
        fedpgp.resume(tmp_path / "out", cache=cache)


def test_rounds_are_told_by_their_loss_whatever_its_terms_are_called() -> None:
    assert results.headline({"round": 1, "loss_task": 1.5, "loss_distance": 0.25}) == "loss 1.750"
    assert results.headline({"round": 1, "loss_ce": 0.5}) == "loss 0.500"
