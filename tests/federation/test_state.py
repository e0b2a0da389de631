"""The state of a run: a round is stored completely or not at all, and only participants are read."""

import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from fedpgp.aggregators import Server
from fedpgp.errors import InUseError, OutputError
from fedpgp.evaluation.evaluator import Evaluation, Evaluator
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import PATIENCE, ClientState, State, grouped
from fedpgp.methods import FedPGP, Local, PromptFL, ZeroShot
from fedpgp.runtime.workers import Workers

SMALL = {"context_length": 3, "learning_rate": 0.05}
METHODS = {
    "fedpgp": FedPGP(**SMALL, bottleneck=2),
    "local": Local(**SMALL),
    "promptfl": PromptFL(**SMALL),
    "zero-shot": ZeroShot(),
}
TENSORS = st.dictionaries(
    st.sampled_from(["p_G", "U", "V"]),
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.float64])),
    max_size=3,
)


def tensors(shapes):
    return {name: torch.randn(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def keep(state, number, value, clients=()):
    """Store a generated round."""
    part = {"p": torch.full((4,), float(value))}
    with state.round():
        state.keep(Server(part), dict.fromkeys(clients, ClientState(part)))
        state.keep_record(number, {"round": number})


def content(state, clients=range(4)):
    """Return the content of a state, to compare it."""
    kept = [state.server(), *map(state.client, clients)]
    return state.records(), [None if one is None else tiny.bits(grouped(one)) for one in kept]


@given(
    server=st.tuples(TENSORS, TENSORS),
    clients=st.dictionaries(st.integers(0, 5), st.tuples(TENSORS, TENSORS, TENSORS), max_size=4),
)
def test_what_is_kept_is_read(server, clients):
    server = Server(*map(tensors, server))
    clients = {client: ClientState(*map(tensors, groups)) for client, groups in clients.items()}
    with State.create() as state:
        assert state.server() is None
        with state.round():
            state.keep(server, clients)
            state.keep_record(1, {"round": 1, "loss": 0.1})
        assert state.records() == [{"round": 1, "loss": 0.1}]
        for found, kept in [(state.server(), server), *((state.client(c), one) for c, one in clients.items())]:
            assert type(found) is type(kept)
            for group, expected in vars(kept).items():
                read = getattr(found, group)
                assert read.keys() == expected.keys()
                assert all(read[name].dtype == tensor.dtype for name, tensor in expected.items())
                assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
        assert [state.client(client) for client in range(6) if client not in clients] == [None] * (6 - len(clients))


def test_an_evaluation_is_kept_until_the_next():
    rng = np.random.default_rng(0)
    made = [
        Evaluation(
            clients={"local": rng.random(3), "base": rng.random(3)},
            correct={"base": rng.integers(0, 256, (3, 2), dtype=np.uint8)},
            shared=shared,
            diagnostics={"cosine": 0.25},
        )
        for shared in (None, {"local": 1 / 3})
    ]
    with State.create() as state:
        for one in made:
            state.keep_evaluation(one)
            found = state.evaluation()
            assert (found.shared, found.diagnostics) == (one.shared, one.diagnostics)
            for kind in ("clients", "correct"):
                assert all((getattr(found, kind)[name] == rows).all() for name, rows in getattr(one, kind).items())


def test_a_round_that_is_not_finished_leaves_no_trace(tmp_path: Path):
    with State.create(tmp_path / "s") as state:
        keep(state, 1, 1.0, [0, 2])
        before = content(state)
        with pytest.raises(ZeroDivisionError), state.round():
            state.keep(Server({"p": torch.zeros(4)}), {0: ClientState({"p": torch.zeros(4)}), 1: ClientState()})
            state.keep_record(2, {"round": 2})
            raise ZeroDivisionError
        assert content(state) == before
    with State.open(tmp_path / "s") as state:
        assert content(state) == before


def test_a_full_disk_keeps_the_finished_rounds(tmp_path: Path):
    with State.create(tmp_path / "s") as state:
        keep(state, 1, 1.0, [0])
        before = content(state)
        state._connection.execute("PRAGMA max_page_count = 8")
        expected = {"where": f"{tmp_path / 's'}", "problem": "full", "remedy": f"--resume {tmp_path}"}
        with raises(OutputError, **expected), state.round():
            part = {"p": torch.zeros(100_000)}
            state.keep(Server(part), {1: ClientState(part)})
        assert content(state) == before
        state._connection.execute("PRAGMA max_page_count = 10000")
        keep(state, 2, 2.0, [1])
        assert state.rounds() == 2


@pytest.mark.slow
def test_a_state_is_open_in_one_place_only(tmp_path: Path):
    file = tmp_path / "s"
    look = (
        "from pathlib import Path; from fedpgp.federation.state import State;"
        f" State.open(Path({str(file)!r}), patience=0)"
    )
    with State.create(file):
        with raises(InUseError, where=f"{tmp_path}", problem="another process", remedy="Wait"):
            State.open(file, patience=0)
        other = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
        assert "InUseError" in other.stderr and "another process" in other.stderr
    State.open(file).close()


def test_a_start_waits_for_a_process_that_only_reads(tmp_path: Path):
    State.create(tmp_path / "s").close()
    with State.open(tmp_path / "s") as state:
        ((milliseconds,),) = state._execute("PRAGMA busy_timeout")
    assert milliseconds == 1000 * PATIENCE >= 1000


def test_only_the_file_that_was_opened_is_removed(tmp_path: Path):
    file = tmp_path / "s"
    for make in (State.create, State.open):
        with make(file) as state:
            (tmp_path / "another").write_bytes(b"another run's")
            (tmp_path / "another").replace(file)
            state.remove()
        assert file.read_bytes() == b"another run's"
        file.unlink()
        State.create(file).remove()
        assert not file.exists()
        State.create(file).close()
    State.open(file).remove()
    assert list(tmp_path.iterdir()) == []


def damaged(found: str, file: Path) -> None:
    with raises(OutputError, where=f"{file}", problem="it is damaged: ", remedy="Start the run again") as caught:
        State.open(file)
    assert found in caught.value.problem


def test_damaged_files(tmp_path: Path):
    file = tmp_path / "s"
    with State.create(file) as state:
        for number in range(1, 9):
            keep(state, number, number, range(40))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    damaged("", file)
    file.write_bytes(b"no database at all, but long enough to be one" * 100)
    damaged("file is not a database", file)
    file.write_bytes(b"")
    damaged("it is empty", file)
    file.write_bytes(whole[:8192] + bytes(4096) + whole[12288:])
    damaged("", file)
    file.unlink()
    with raises(OutputError, where=f"{file}", problem="it cannot be "):
        State.open(file)
    assert not file.exists()


def test_another_schema(tmp_path: Path):
    State.create(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with raises(OutputError, where=f"{tmp_path / 's'}", problem="reads schema 3", got=99):
        State.open(tmp_path / "s")


# ------------------------------------------------------------------------------------------------------------ resume


def outcome(state):
    """Return the result of a run without times."""
    records = [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in state.records()]
    found = state.evaluation()
    arrays = [{name: rows.tobytes() for name, rows in kind.items()} for kind in (found.clients, found.correct)]
    return records, content(state, range(3))[1:], arrays, found.shared, found.diagnostics


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("changes", [{}, {"participation": 0.67, "independent_private": True, "eval_every": 3}])
def test_a_run_that_was_stopped_anywhere_ends_as_one_that_was_not(name, changes, backbone, tmp_path, monkeypatch):
    """Between two rounds, in training, and in an evaluation, one after the other in the same run."""
    method, data = METHODS[name], tiny.data(backbone)
    settings = FederationConfig(**{**tiny.SETTINGS, "rounds": 4, "local_epochs": 1, **changes})

    def rounds(state, workers=None):
        runner = ClientRunner(RunSpec(method, data.task, backbone, settings, 0), data)
        return federate(runner, workers or Workers(backbone.towers(), 1), state)

    with State.create() as state:
        list(rounds(state))
        whole = outcome(state)
    assert [("local" in record) for record in whole[0]] == (
        [True] * len(whole[0]) if not changes or name == "zero-shot" else [False, False, True, True]
    )

    class Stops(Workers):
        """Works in this process until it is stopped in the middle of the given call."""

        def __init__(self, at):
            super().__init__(backbone.towers(), 1)
            self.left = at

        def map(self, function, jobs):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().map(function, jobs)

    path = tmp_path / "s"
    State.create(path).close()
    for stop in range(7):
        with State.open(path) as state, pytest.raises((KeyboardInterrupt, StopIteration)):
            going = rounds(state, Stops(stop))
            while True:
                next(going)
    with State.open(path) as state:
        list(rounds(state))
        assert outcome(state) == whole
        assert list(rounds(state)) == []


def test_in_a_round_only_the_participants_are_read_and_kept(backbone, monkeypatch):
    """The same work for a hundred clients and for two thousand."""
    reads, kept = Counter(), Counter()
    read, keep = State.client, State.keep
    monkeypatch.setattr(State, "client", lambda self, client: (reads.update([client]), read(self, client))[1])
    monkeypatch.setattr(
        State, "keep", lambda self, server, clients: (kept.update(list(clients)), keep(self, server, clients))
    )
    monkeypatch.setattr(
        Evaluator,
        "__call__",
        lambda *_: Evaluation(dict.fromkeys(("local", "base", "novel"), np.ones(1)), {}, None, {}),
    )
    for clients in (100, 2000):
        data = tiny.data(backbone, classes=(tiny.CLASSES * clients)[:clients], examples=(2,) * clients)
        reads.clear(), kept.clear()
        settings = FederationConfig(rounds=3, participation=10 / clients, local_epochs=1, eval_every=3)
        with State.create() as state:
            spec = RunSpec(METHODS["fedpgp"], data.task, backbone, settings, 0)
            found = list(federate(ClientRunner(spec, data), Workers(backbone.towers(), 1), state))
        expected = Counter(client for record in found for client in record["participants"])
        assert kept == expected and expected.total() == 30
        assert reads == expected + Counter([0])  # in the evaluation, for the shapes of the shared model
