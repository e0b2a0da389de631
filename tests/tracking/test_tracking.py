"""Trackers write with the real packages, and the tests read the files with the packages' own readers."""

import json
import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, refused, sets
from raising import raises
from tiny import SHORT_RUN, draw_nothing

import fedpgp
from fedpgp.errors import ConfigError, OutputError
from fedpgp.tracking import MLflow, Several, TensorBoard, WandB, tracker
from fedpgp.tracking.figures import scalars, settings

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, whose creation takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "runs.db"
    MLflow(str(path), "of another program")
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "runs.db"))


def run(cache: Path, reporter, method: str = "fedpgp", seed: int = 0, **more) -> fedpgp.Run:
    changes = [*SHORT_RUN, "fedpgp.mu=0.75", "federation.path_points=2"]
    return fedpgp.run(method, seed, changes=changes, cache=cache, reporter=reporter, **more)


def test_scalars_of_a_round() -> None:
    record = {
        "round": 3, "participants": [0, 4], "local": 61.5, "loss_task": 0.25, "cosine_global_personal": -0.5,
        "shared": {"local": 60.0, "novel": 50.0}, "bytes_up": 8192, "seconds_training": 1.5, "lost": "too few",
        "new_clients": [{"local": 1.0}], "validation_local": 55.0, "faults": {"2": "no answer"},
    }  # fmt: skip
    assert scalars(record) == {
        "participants": 2, "local": 61.5, "loss/task": 0.25, "cosine/global_personal": -0.5, "shared/local": 60.0,
        "shared/novel": 50.0, "bytes/up": 8192, "seconds/training": 1.5, "validation/local": 55.0,
    }  # fmt: skip
    assert scalars({"round": 1, "participants": [], "shared": None}) == {"participants": 0}


def test_settings_come_from_the_method_and_the_task() -> None:
    found = settings(fedpgp.load_config(changes=["fedpgp.mu=0.75", "task.clients=3"]), "fedpgp", 7)
    assert (found["fedpgp.mu"], found["task.clients"], found["seed"], found["method"]) == (0.75, 3, 7, "fedpgp")
    assert found["data.source"] == "pictograms" and found["federation.aggregator"] == "fedavg"
    assert found["task.targets"] == "()" and "task.classes_per_client" not in found
    assert not any(key.startswith("promptfl.") for key in found)


def test_tensorboard_reads_what_was_written(cache: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoard(tmp_path / "tb") as tracking:
        made = run(cache, tracking)
    read = EventAccumulator(str(tmp_path / "tb/fedpgp/seed-0"))
    read.Reload()
    expected = {name for record in made.rounds for name in scalars(record)}
    assert {"local", "shared/novel", "loss/task", "bytes/up", "seconds/training"} < expected
    assert expected < set(read.Tags()["scalars"])
    for name in expected:
        events = [(event.step, event.value) for event in read.Scalars(name)]
        assert events == [(record["round"], pytest.approx(scalars(record)[name], rel=1e-6)) for record in made.rounds]
    (last,) = read.Scalars("final/local")
    assert (last.step, last.value) == (2, pytest.approx(made.results["final"]["local"]))
    (config,) = read.Tensors("config/text_summary")
    assert b"mu = 0.75" in config.tensor_proto.string_val[0]
    (table,) = read.Tensors("table/text_summary")
    assert b"| fedpgp, shared part |" in table.tensor_proto.string_val[0]
    metadata = read.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert metadata.plugin_name == "hparams" and b"fedpgp.mu" in metadata.content


def test_tensorboard_separates_equal_runs_of_a_grid_and_continues_after_a_stop(cache: Path, tmp_path: Path) -> None:
    tracking = TensorBoard(tmp_path / "tb")
    for _ in range(2):
        run(cache, tracking, "zero-shot")
    TensorBoard(tmp_path / "tb").begin("zero-shot", 0, fedpgp.load_config())
    assert [len(list((tmp_path / "tb/zero-shot" / name).iterdir())) for name in ("seed-0", "seed-0-2")] == [2, 1]


def test_mlflow_reads_what_was_written(cache: Path, tmp_path: Path, store: Path) -> None:
    from mlflow import MlflowClient

    with MLflow(f"sqlite:///{store}") as tracking:
        made = run(cache, tracking)
        other = fedpgp.rounds("fedpgp", 1, changes=SHORT_RUN, cache=cache, reporter=tracking)
        next(other)
        other.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "fedpgp"]
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert {name: one.info.status for name, one in found.items()} == {
        "fedpgp, seed 0": "FINISHED",
        "fedpgp, seed 1": "KILLED",
    }
    one = found["fedpgp, seed 0"]
    assert one.data.params == {name: str(value) for name, value in settings(made.config, "fedpgp", 0).items()}
    for name in ("local", "shared/novel", "loss/task", "bytes/up", "cosine/global_personal"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, name)]
        assert history == [(record["round"], scalars(record)[name]) for record in made.rounds]
    assert one.data.metrics["final/cm"] == made.results["final"]["cm"]
    files = tmp_path / "runs.db.files" / one.info.run_id / "artifacts"
    assert "| fedpgp, shared part |" in (files / "table.md").read_text()
    assert json.loads((files / "results.json").read_text()) == made.results
    assert "mu = 0.75" in (files / "config.toml").read_text()


def test_mlflow_keeps_one_experiment_and_accepts_names_of_datasets(store: Path) -> None:
    for _ in range(2):
        tracking = MLflow(str(store), "mine")
    tracking.begin("fedpgp", 0, fedpgp.load_config())
    tracking.round("fedpgp", 0, {"round": 1, "participants": [], "Caltech-101 (coop)": 3.0})
    tracking.close()
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'mine'").fetchone() == (1,)
        assert ("Caltech-101 _coop_",) in database.execute("SELECT key FROM metrics").fetchall()
    database.close()


def records(path: Path) -> Iterator[object]:
    """Read wandb's messages from a .wandb file: a LevelDB log of blocks of 32 KiB, and pieces with a header."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # wandb's service closes the file a moment after its answer
    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_reads_what_was_written(cache: Path, tmp_path: Path) -> None:
    with WandB("mine", directory=tmp_path) as tracking:
        made = run(cache, tracking)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    (begun,) = [one.run for one in found if one.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.display_name, begun.run_group) == ("mine", "fedpgp, seed 0", "fedpgp")
    assert {name: config[name] for name in settings(made.config, "fedpgp", 0)} == settings(made.config, "fedpgp", 0)
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.WhichOneof("record_type") == "history"
    ]
    for line, record in zip(history, made.rounds, strict=False):
        logged = {"round": record["round"], **scalars(record)}
        assert {name: line[name] for name in logged} == pytest.approx(logged)
    summary = {
        item.key: json.loads(item.value_json)
        for one in found
        if one.WhichOneof("record_type") == "summary"
        for item in one.summary.update
    }
    assert summary["final/cm"] == pytest.approx(made.results["final"]["cm"])
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert ["final", "local", pytest.approx(made.results["final"]["local"])] in json.loads(table.read_text())["data"]
    assert [one.exit.exit_code for one in found if one.WhichOneof("record_type") == "exit"] == [0]


def test_wandb_records_no_code_no_repository_and_no_machine_name(cache: Path, tmp_path: Path) -> None:
    with WandB("mine", directory=tmp_path) as tracking:
        run(cache, tracking, "zero-shot")
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    kinds = {one.WhichOneof("record_type") for one in found}
    (begun,) = [one.run for one in found if one.WhichOneof("record_type") == "run"]
    assert begun.host == "-" and not begun.HasField("git")
    assert {"run", "history", "summary", "exit"} <= kinds
    assert not {"environment", "stats", "output", "output_raw"} & kinds
    names = {file.name for file in tmp_path.rglob("*") if file.is_file() and "logs" not in file.parts}
    assert {name for name in names if not name.startswith(("run-", "table_"))} <= {"debug.log", "debug-internal.log"}


def test_several_trackers_get_the_same_calls_and_are_all_closed(cache: Path, tmp_path: Path) -> None:
    class Failing(TensorBoard):
        def abandon(self, entry):
            entry.close()
            raise OSError("no space left")

    kept = [TensorBoard(tmp_path / "a"), Failing(tmp_path / "b"), TensorBoard(tmp_path / "c")]
    with raises(OutputError, where="--track tensorboard", problem="no space left"), Several(kept) as all_of_them:
        all_of_them.begin("fedpgp", 0, fedpgp.load_config())
        all_of_them.round("fedpgp", 0, {"round": 1, "participants": []})
    assert all(not one._entries for one in kept)
    assert [len(list((tmp_path / name).rglob("events*"))) for name in "abc"] == [1, 1, 1]


def test_a_tracker_that_fails_stops_the_run_which_continues_without_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = TensorBoard(tmp_path / "tb")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "log", full)
    with raises(OutputError, where="--track tensorboard", problem="No space left on device"), tracking:
        run(cache, tracking, output=tmp_path / "out")
    (found,) = fedpgp.resume(tmp_path / "out", cache=cache).runs
    assert found.results["rounds"] == 2


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("tensorbord:out", {"allowed": "tensorboard:DIR", "got": "tensorbord:out", "remedy": "'tensorboard'"}),
        ("wandb", {"allowed": "wandb:PROJECT", "got": "wandb"}),
        ("mlflow:", {"allowed": "mlflow:URI", "got": "mlflow:"}),
        ("mlflow:mlruns", {"where": "mlflow:mlruns", "remedy": "mlflow:sqlite:///runs.db"}),
        ("tensorboard:/proc/none/such", {"where": "tensorboard:/proc/none/such", "problem": "written"}),
    ],
)
def test_invalid_targets_of_trackers_are_refused(text: str, fields: dict[str, str]) -> None:
    with raises(ConfigError, **{"where": "--track", **fields}):
        tracker(text)


@pytest.mark.parametrize(
    ("module", "text"), [("tensorboard", "tensorboard:x"), ("mlflow", "mlflow:x.db"), ("wandb", "wandb:x")]
)
def test_a_missing_package_is_named(module: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with raises(ConfigError, where="--track", problem=module, remedy='`pip install "fedpgp[tracking]"`'):
        tracker(text)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_tracks_runs_and_comparisons(
    command: Command, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    each = ["--track", "tensorboard:tb", "--track", "mlflow:sqlite:///runs.db"]
    ended = command("compare", "--methods", "zero-shot,promptfl", *each, *sets(), "-o", "out")
    assert ended.code == 0, ended.err
    assert "promptfl, seed 0: 2/2" in ended.err  # the session still gets all calls
    assert {str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("tb/*/*/events*")} == {
        "tb/zero-shot/seed-0",
        "tb/promptfl/seed-0",
    }
    assert command("run", "--method", "zero-shot", *each, *sets(), "-o", "one").code == 0
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT name, status FROM runs ORDER BY start_time").fetchall() == [
            ("zero-shot, seed 0", "FINISHED"), ("promptfl, seed 0", "FINISHED"), ("zero-shot, seed 0", "FINISHED"),
        ]  # fmt: skip
    database.close()


@pytest.mark.parametrize("name", ["run", "compare"])
def test_the_command_line_refuses_an_unknown_kind_before_any_work(name: str, command: Command, tmp_path: Path) -> None:
    method = ["--method", "zero-shot"] if name == "run" else []
    refused(command(name, *method, "--track", "clearml:x", "-o", "out"), "--track", "'clearml:x'")
    assert list(tmp_path.iterdir()) == []
