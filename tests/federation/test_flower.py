"""Clients on Flower: the local engine's figures, what crosses the network, and what happens to those that fail."""

import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from in_process_grid import InProcessGrid

from fedpgp.aggregators import AGGREGATORS, FedAvg, Scaffold
from fedpgp.config import FederationConfig
from fedpgp.data.own import counts_of
from fedpgp.errors import DataError, OutputError, TrainingError
from fedpgp.federation.client_app import TRAIN, client_app
from fedpgp.federation.course import Course, aggregator_for
from fedpgp.federation.flower import Guest, Nodes, answer, terms_of
from fedpgp.federation.jobs import Federation
from fedpgp.federation.node import Node, OwnStates, own_states
from fedpgp.federation.rounds import run_rounds
from fedpgp.federation.state import ClientState, State
from fedpgp.methods import METHODS
from fedpgp.reading import kind_of

RUN = "0123456789abcdef" * 2
SMALL = {"rounds": 3, "path_points": 3}


@dataclass
class World:
    """A federation whose clients are ClientApps in this process."""

    grid: InProcessGrid
    nodes: Nodes
    state: State
    course: Course
    data: object
    directory: Path

    def rounds(self, count=None) -> list:
        found = []
        for record in run_rounds(self.course, self.nodes, self.state):
            found.append(record)
            if len(found) == count:
                break
        return found

    def kept(self, client: int) -> ClientState | None:
        return own_states(self.directory, RUN, client).after(self.nodes.counted.get(client, 0))[1]


@pytest.fixture
def world(backbone, tmp_path, new_state):
    def make(method, aggregator=None, *, trusted=True, forgiving=False, below="", **more):
        guests, meddle, state = more.pop("guests", {}), more.pop("meddle", None), more.pop("state", None)
        data = tiny.data(backbone, kind=kind_of(method))
        settings = FederationConfig(**{**tiny.SETTINGS, **SMALL, **more})
        course = Course(method, data.task, backbone, settings, 0, aggregator_for(method, aggregator))

        def opened(client: int) -> Guest:
            alone = replace(data, task=replace(data.task, clients=(data.task.clients[client],)))
            federation = Federation(course, alone, backbone)
            node = Node(federation, backbone.towers(method.reads), client, tmp_path / below)
            return Guest(node, terms_of(backbone, data.task), counts_of(alone.task))

        held = {100 + i: opened(i) for i in range(3)}
        openers = {node: (lambda guest=guest: guest) for node, guest in held.items()} | guests

        def app(opener):
            return client_app(lambda kind, content, context: answer(kind, content, opener, trusted=trusted))

        grid = InProcessGrid({node: app(opener) for node, opener in openers.items()})
        if meddle is not None:
            grid.meddle = meddle
        state = state or new_state()
        counted = {client: record["round"] for record in state.records() for client in record["participants"]}
        nodes = Nodes(grid, course, RUN, terms_of(backbone, data.task), counted, 0.3, forgiving)
        return World(grid, nodes, state, course, data, tmp_path / below)

    return make


CASES = {
    "fedpgp": (tiny.small(METHODS["fedpgp"]), None, {}),
    "some take part": (tiny.small(METHODS["fedpgp"]), None, {"participation": 0.6, "path_points": 1}),
    "a client's own download": (tiny.small(METHODS["prompt-amp"]), None, {}),
    "others' prompts": (tiny.small(METHODS["pfedmoap"]), None, {}),
    "fine-tuning": (tiny.small(METHODS["pfedprompt"]), None, {}),
    "a memory of images": (tiny.small(METHODS["fedpromptsrc"]), None, {}),
    "control variates": (tiny.small(METHODS["promptfl"]), Scaffold(), {}),
    "server's momentum": (tiny.small(METHODS["promptfl"]), AGGREGATORS["fedadam"](), {}),
    "nothing is shared": (tiny.small(METHODS["local"]), None, {}),
    "nothing is trained": (METHODS["zero-shot"](), None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_records_prompts_and_evaluation_are_those_of_the_local_engine_to_the_bit(case, world, backbone, new_state):
    method, aggregator, changes = CASES[case]
    there = world(method, aggregator, **changes)
    records = there.rounds()
    here = new_state()
    rounds = tiny.run(method, backbone, there.data, state=here, aggregator=aggregator, **{**SMALL, **changes})
    own = ("seconds_", "wire_")
    for ours, theirs in zip(rounds, records, strict=True):
        assert ours.record.keys() == {name for name in theirs if not name.startswith("wire_")}
        assert {k: v for k, v in ours.record.items() if not k.startswith(own)} == {
            k: v for k, v in theirs.items() if not k.startswith(own)
        }
    last, found = here.evaluation(), there.state.evaluation()
    assert (last.shared, last.diagnostics) == (found.shared, found.diagnostics)
    assert last.path.keys() == found.path.keys()
    for name, bits in last.correct.items():
        np.testing.assert_array_equal(bits, found.correct[name])
    server, theirs = here.server(), there.state.server()
    assert all(torch.equal(value, theirs.shared[name]) for name, value in server.shared.items())
    for client in range(3):
        mine, its = here.client(client), there.kept(client)
        for group in ("private", "kept"):
            expected = {} if mine is None else getattr(mine, group)
            kept = {} if its is None else getattr(its, group)
            assert expected.keys() == kept.keys()
            assert all(torch.equal(value, kept[name]) for name, value in expected.items())


def windows(tensor: torch.Tensor, length: int = 16) -> list[bytes]:
    """Some of its numbers, four at a time, as they lie in memory: what a capture would hold of it."""
    raw = tensor.detach().cpu().contiguous().numpy().tobytes()
    return [raw[at : at + length] for at in range(0, max(1, len(raw) - length), 64)]


@pytest.mark.parametrize("name", ["fedpgp", "fedpha", "dp-fpl", "promptfolio", "pfedprompt"])
def test_no_private_part_no_feature_and_no_label_leaves_a_client(name, world, backbone):
    method = tiny.small(METHODS[name])
    there = world(method, trusted=False)
    secrets = []
    original = OwnStates.keep

    def keep(self, number, counted, state):  # of every round, not of the last alone
        secrets.extend(state.private.values())
        original(self, number, counted, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnStates, "keep", keep)
        there.rounds()
    assert bool(secrets) == (name != "pfedprompt")  # what that keeps is a memory of its images
    first = there.course.first(0).private.values()
    secrets += [tensor for tensor in first if tensor.any()]
    secrets += [there.data.train.pooled, *(test.pooled for test in there.data.tests.values())]
    captured = b"".join(content for _, content in there.grid.received) + b"".join(there.grid.sent)
    for secret in secrets:
        for window in windows(secret):
            assert not any(window) or window not in captured
    for _, content in there.grid.received:  # names, prompts, counts and figures, and no more
        records = _read(content)
        assert {*records.array_records} <= {"shared", "control"}
        for record in records.array_records.values():
            assert {*record} <= {*there.course.shared}
        for record in records.config_records.values():
            assert {*record} <= {"client", "examples", "tests_base", "tests_novel", "run", "round", "after"}


def test_what_is_captured_would_be_found(world):
    there = world(tiny.small(METHODS["promptfl"]), trusted=False)
    there.rounds()
    captured = b"".join(there.grid.sent)
    assert all(window in captured for window in windows(there.course.shared["p_G"]))


def _read(content: bytes) -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(content))


def _written(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def meddling(node: int, change, kind=TRAIN, rounds=(2,)):
    """A node whose replies are changed in some rounds."""

    def meddle(at, message, reply):
        if at != node or message.metadata.message_type != kind or int(message.metadata.group_id) not in rounds:
            return reply
        return change(_read(reply))

    return meddle


def nan(content):
    (name, array), *_ = content.array_records["shared"].items()
    values = array.numpy().copy()
    values.flat[0] = np.nan
    content.array_records["shared"][name] = Array(values)
    return _written(content)


def wrong_shape(content):
    (name, array), *_ = content.array_records["shared"].items()
    content.array_records["shared"][name] = Array(array.numpy()[:-1])
    return _written(content)


def other_name(content):
    content.array_records["shared"] = ArrayRecord({"q": Array(np.zeros(3, np.float32))})
    return _written(content)


def declares_more(content):
    (name, array), *_ = content.array_records["shared"].items()
    content.array_records["shared"][name] = Array("float32", (1 << 30,), array.stype, array.data)
    return _written(content)


def pickled(content):
    (name, array), *_ = content.array_records["shared"].items()
    content.array_records["shared"][name] = Array("object", array.shape, array.stype, b"\x80\x04N." * 100)
    return _written(content)


def old_round(content):
    content.config_records["about"]["round"] = 1
    return _written(content)


def other_run(content):
    content.config_records["about"]["run"] = "f" * 32
    return _written(content)


def many_examples(content):
    content.config_records["about"]["examples"] = 1 << 62
    return _written(content)


def no_losses(content):
    content.metric_records["losses"]["task"] = float("inf")
    return _written(content)


def says_more(content):
    content["extra"] = ConfigRecord({"x": 1})
    return _written(content)


HOSTILE = {
    nan: "p_G is not finite",
    wrong_shape: "p_G has shape",
    other_name: "it sent 1 tensors ['q'], not ['p_G']",
    declares_more: "p_G has shape (1073741824,)",
    pickled: "p_G has type 'object'",
    old_round: "it answers round 1, not round 2",
    other_run: "it answers run 'ffff",
    many_examples: "it says that it has 4611686018427387904 examples",
    no_losses: "loss 'task' is inf",
    says_more: "it sent a record 'extra'",
    lambda content: None: "no reply within 0.3 seconds",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_an_update_that_may_not_be_used_is_dropped_with_its_reason_and_counts_for_nothing(change, world):
    method = tiny.small(METHODS["fedpgp"])
    there = world(method, trusted=False, forgiving=True, meddle=meddling(101, change))
    records = there.rounds()
    assert [record["participants"] for record in records] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    (dropped,) = records[1]["dropped"]
    assert (dropped["client"], dropped["in"]) == (1, "train")
    assert HOSTILE[change] in dropped["reason"]
    assert "dropped" not in records[0] | records[2]
    # Client 1 went on from round 1 in round 3, as if it had been away in round 2.
    other = replace_participation(world, method, {2: [0, 2]})
    assert torch.equal(there.state.server().shared["p_G"], other.state.server().shared["p_G"])
    for client in range(3):
        mine, its = there.kept(client), other.kept(client)
        assert all(torch.equal(value, its.private[name]) for name, value in mine.private.items())


@pytest.mark.parametrize(("change", "refused"), [(nan, 1), (lambda content: None, 0)], ids=["NaN", "silent"])
def test_the_aggregator_is_told_how_many_faulty_clients_are_out_already_and_silent_ones_are_none(
    change, refused, world, monkeypatch
):
    told, without = [], FedAvg.without
    monkeypatch.setattr(FedAvg, "without", lambda self, count: told.append(count) or without(self, count))
    world(tiny.small(METHODS["fedpgp"]), trusted=False, forgiving=True, meddle=meddling(101, change)).rounds()
    assert told == [0, refused, 0]


def replace_participation(world, method, taking_part):
    """The same federation, undisturbed, in which others are not asked at all in some rounds."""
    there = world(method, trusted=False, below="other")
    downloads = there.course.downloads

    def fewer(number, server):
        found = downloads(number, server)
        return {client: found[client] for client in taking_part.get(number, found)}

    there.course.downloads = fewer
    there.rounds()
    return there


def test_where_all_are_one_party_a_client_that_fails_ends_the_run(world):
    there = world(tiny.small(METHODS["fedpgp"]), meddle=meddling(101, nan))
    with pytest.raises(TrainingError, match="client 1: p_G is not finite"):
        there.rounds()


def test_a_round_without_any_answer_ends_the_run_and_it_can_be_gone_on_with(world):
    method = tiny.small(METHODS["fedpgp"])
    there = world(method, forgiving=True)
    there.rounds(1)
    there.grid.away = {100, 101, 102}
    with pytest.raises(TrainingError, match="no client answered in round 2"):
        there.rounds()
    there.grid.away = set()
    assert [record["round"] for record in there.rounds()] == [2, 3]


def test_a_client_that_is_away_is_left_out_and_taken_in_again(world):
    there = world(tiny.small(METHODS["fedpgp"]), forgiving=True)
    rounds = run_rounds(there.course, there.nodes, there.state)
    assert next(rounds)["participants"] == [0, 1, 2]
    there.grid.away = {101}
    away = next(rounds)
    assert away["participants"] == [0, 2]
    assert {one["reason"] for one in away["dropped"]} == {"no reply within 0.3 seconds"}
    assert away["evaluated"] == [0, 2]
    there.grid.away = set()
    assert next(rounds)["participants"] == [0, 1, 2]


def test_a_server_that_was_stopped_after_clients_had_trained_does_the_round_once_more_from_the_same_parts(world):
    method = tiny.small(METHODS["fedpgp"])
    whole = world(method)
    whole.rounds()
    expected = [whole.kept(client).private for client in range(3)]
    stopped = world(method)
    stopped.rounds(1)
    downloads = stopped.course.downloads(2, stopped.state.server())
    stopped.nodes.train(2, downloads)  # and nothing of it is kept at the server
    again = world(method, state=stopped.state)
    again.rounds()
    for client, private in enumerate(expected):
        assert all(torch.equal(value, again.kept(client).private[name]) for name, value in private.items())
    assert torch.equal(whole.state.server().shared["p_G"], again.state.server().shared["p_G"])


def test_a_node_that_comes_back_with_an_old_state_goes_on_and_the_record_says_so(world):
    there = world(tiny.small(METHODS["fedpgp"]), forgiving=True)
    rounds = run_rounds(there.course, there.nodes, there.state)
    next(rounds)
    directory = there.directory / RUN / "client-1"
    old = {file.name: file.read_bytes() for file in directory.iterdir()}
    next(rounds)
    for file in directory.iterdir():
        file.unlink()
    for name, content in old.items():
        (directory / name).write_bytes(content)
    record = next(rounds)
    assert record["older_state"] == [{"client": 1, "after": 1, "instead": 2}]
    assert record["participants"] == [0, 1, 2]


def test_two_runs_of_one_client_do_not_mix(world, tmp_path):
    first, second = own_states(tmp_path, "a" * 32, 1), own_states(tmp_path, "b" * 32, 1)
    first.keep(1, 0, ClientState({"U": torch.ones(2)}))
    second.keep(1, 0, ClientState({"U": torch.zeros(2)}))
    assert first.after(1)[1].private["U"].sum() == 2
    assert second.after(1)[1].private["U"].sum() == 0
    assert own_states(tmp_path, "a" * 32, 2).after(5) == (0, None)


@pytest.mark.parametrize("run", ["../" * 10 + "etc", "", "A" * 32, "0" * 31])
def test_the_id_of_a_run_is_no_path(run, tmp_path):
    with pytest.raises(OutputError, match="32 hexadecimal digits"):
        own_states(tmp_path, run, 0)


def test_what_a_client_keeps_can_be_read_by_its_owner_alone(tmp_path):
    states = OwnStates(tmp_path / "state" / "run" / "client-0")
    for number in (1, 2, 3):
        states.keep(number, number - 1, ClientState({"U": torch.ones(2)}))
    files = sorted(file.name for file in states.directory.iterdir())
    assert files == ["round-000002.safetensors", "round-000003.safetensors"]
    for directory in (states.directory, *states.directory.parents[:2]):  # or the node would not start again
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in states.directory.iterdir()} == {0o600}
    states.directory.chmod(0o755)
    with pytest.raises(OutputError, match="is open to other users: close it with chmod 700"):
        states.after(3)


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    states = OwnStates(tmp_path / "run")
    states.keep(1, 0, ClientState())
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    with pytest.raises(OutputError, match="belongs to another user"):
        states.after(1)


def test_a_full_disk_at_a_node_is_said_and_what_was_there_stays(world, tmp_path, monkeypatch):
    there = world(tiny.small(METHODS["fedpgp"]), trusted=False, forgiving=True)
    rounds = run_rounds(there.course, there.nodes, there.state)
    next(rounds)
    before = {client: there.kept(client) for client in range(3)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedpgp.federation.node.write", full)
        record = next(rounds)
    assert record["participants"] == []
    reasons = {one["reason"] for one in record["dropped"] if one["in"] == "train"}
    assert reasons == {"OutputError: the log of its node says more"}
    for client, kept in before.items():
        assert torch.equal(there.kept(client).private["U"], kept.private["U"])
    assert next(rounds)["participants"] == [0, 1, 2]


def test_a_node_that_does_not_fit_is_refused_by_name_and_the_others_go_on(world, backbone):
    def no_data():
        raise DataError("/srv/patients: holds no image")

    there = world(tiny.small(METHODS["fedpgp"]), trusted=False, forgiving=True, guests={101: no_data})
    there.nodes.gather(3)
    records = there.rounds()
    assert {record["participants"] == [0, 2] for record in records} == {True}
    (refused,) = records[0]["refused"]
    assert refused == {"node": "101", "reason": "DataError: the log of its node says more"}  # and no path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fedpgp": "0.0.1"}, r"the node has fedpgp 0\.0\.1, the server"),
        ({"checkpoint": "other"}, "the node's checkpoint is another than the server's"),
        ({"classes": ("ant", "zebra")}, r"it has 'zebra'; it lacks 'alarm clock', 'bus'"),
        ({"classes": tiny.NAMES[::-1]}, "they stand in another order"),
    ],
)
def test_terms_that_differ_are_named(change, says, backbone):
    terms = terms_of(backbone, tiny.task())
    with pytest.raises(Exception, match=says):
        terms.check(replace(terms, **change))
    terms.check(terms)


def test_two_nodes_cannot_be_one_client(world, backbone):
    there = world(tiny.small(METHODS["fedpgp"]), forgiving=True)
    there.grid.apps[200] = there.grid.apps[101]
    there.grid.contexts[200] = there.grid.contexts[101]
    records = there.rounds()
    (refused,) = records[0]["refused"]
    assert refused["node"] == "200"
    assert "client 1, which another node is" in refused["reason"]


def test_replies_may_come_twice_late_and_in_any_order(world):
    """The grid hands out each reply twice, the last first, and those of the round before once more."""
    method = tiny.small(METHODS["fedpgp"])
    plain = world(method, below="plain")
    plain.rounds()
    there = world(method)
    pull, before = there.grid.pull_messages, []

    def pulled(identifiers):
        found = list(reversed(pull(identifiers)))
        handed = [*found, *found, *before]
        before[:] = found or before
        return handed

    there.grid.pull_messages = pulled
    there.rounds()
    assert torch.equal(there.state.server().shared["p_G"], plain.state.server().shared["p_G"])
    for client in range(3):
        assert torch.equal(there.kept(client).private["U"], plain.kept(client).private["U"])


def test_messages_are_small(world):
    there = world(tiny.small(METHODS["fedpgp"], context_length=16))
    record = there.rounds()[-1]
    size = sum(value.nbytes for value in there.course.shared.values())
    for name in ("wire_down_train", "wire_up_train", "wire_down_evaluate", "wire_up_evaluate"):
        assert record[name] <= 1.05 * size + 4096
