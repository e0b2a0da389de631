"""Clients on Flower: equal figures as in the local engine, the network traffic, and clients that fail."""

import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from in_process_grid import InProcessGrid
from raising import raises

from fedpgp.aggregators import FedAvg, Scaffold
from fedpgp.errors import DataError, OutputError, TrainingError
from fedpgp.evaluation.inference import kind_of
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.privacy import protected
from fedpgp.federation.rounds import run_rounds
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.federation.state import ClientState, State
from fedpgp.flower.client_app import EVALUATE, TRAIN, client_app
from fedpgp.flower.messages import check_terms, terms_of
from fedpgp.flower.node import Node, OwnStates, answer, own_states
from fedpgp.flower.nodes import Nodes
from fedpgp.flower.update_validation import Refused
from fedpgp.methods import METHODS

RUN = "0123456789abcdef" * 2
SMALL = {"rounds": 2, "local_epochs": 1, "batch_size": 8, "path_points": 3, "deadline": 0.3}
FEDPGP = tiny.small(METHODS["fedpgp"])


@dataclass
class World:
    """A federation whose clients are ClientApps in this process."""

    grid: InProcessGrid
    nodes: Nodes
    state: State
    spec: RunSpec
    data: object
    directory: Path

    def each(self) -> Iterator[dict]:
        return run_rounds(self.spec, self.nodes, self.state)

    def rounds(self, number=None) -> list[dict]:
        """Run the next rounds, or all rounds, and return their records."""
        return list(islice(self.each(), number))

    def kept(self, client: int) -> ClientState | None:
        return own_states(self.directory, RUN, client).after(self.nodes.counted.get(client, 0))[1]

    def trained(self) -> dict[str, torch.Tensor]:
        """Return the shared prompt and the clients' private parts."""
        private = {f"{name}/{i}": value for i in range(3) for name, value in self.kept(i).private.items()}
        return tiny.bits({**self.state.server().shared, **private})


def open_world(
    backbone,
    directory,
    state,
    method=FEDPGP,
    aggregator=None,
    *,
    trusted=True,
    forgiving=False,
    guests=None,
    numbers=None,
    **more,
) -> World:
    """Start a federation.

    Parameters
    ----------
    guests
        Functions that open a client, by the number of the node that they replace or add.
    numbers
        Numbers of the nodes' keys.
    more
        Further settings.
    """
    privacy = more.pop("privacy", PrivacyConfig())
    data = more.pop("data", None) or tiny.data(backbone, kind=kind_of(method))
    settings = FederationConfig(**{**tiny.SETTINGS, **SMALL, **more})
    spec = RunSpec(method, data.task, backbone, settings, 0, protected(privacy, aggregator or FedAvg()))

    def opened(client: int) -> Node:
        alone = replace(data, task=replace(data.task, clients=(data.task.clients[client],)))
        return Node(ClientRunner(spec, alone), directory)

    def app(opener):
        return client_app(lambda kind, content, _: answer(kind, content, opener, trusted=trusted), vars(privacy))

    held = {100 + i: opened(i) for i in range(len(data.task.clients))}
    openers = {node: (lambda guest=guest: guest) for node, guest in held.items()} | (guests or {})
    grid = InProcessGrid({node: app(opener) for node, opener in openers.items()})
    state.keep_origin({"run": RUN})
    keys = None if numbers is None else lambda: numbers
    nodes = Nodes(grid, spec, state, terms_of(backbone, data.task), privacy, forgiving=forgiving, numbers=keys)
    return World(grid, nodes, state, spec, data, directory)


@pytest.fixture
def world(backbone, tmp_path, new_state):
    """Return a function that starts a federation with new states, or with the states of `before`."""
    numbers = count()

    def make(*given, before=None, **more):
        directory = before.directory if before else tmp_path / f"states-{next(numbers)}"
        return open_world(backbone, directory, before.state if before else new_state(), *given, **more)

    return make


@pytest.fixture(scope="module")
def undisturbed(backbone, tmp_path_factory):
    """Return what a federation has trained after three rounds without faults."""
    with State.create() as state:
        there = open_world(backbone, tmp_path_factory.mktemp("undisturbed"), state, rounds=3)
        there.rounds()
        return there.trained()


CASES = {
    "some take part": (FEDPGP, None, {"participation": 0.6}),
    "limits against hostile clients": (FEDPGP, None, {"protection": True, "participation": 0.6}),
    "a client's own download": (tiny.small(METHODS["prompt-amp"]), None, {}),
    "others' prompts": (tiny.small(METHODS["pfedmoap"]), None, {}),
    "fine-tuning": (tiny.small(METHODS["promptfl"], finetuning=1), None, {"rounds": 1}),
    "a memory of images": (tiny.small(METHODS["pfedprompt"]), None, {}),
    "patches of images": (tiny.small(METHODS["fedotp"]), None, {"rounds": 1}),
    "control variates": (tiny.small(METHODS["promptfl"]), Scaffold(), {}),
    "nothing is shared": (tiny.small(METHODS["local"]), None, {}),
    "nothing is trained": (METHODS["zero-shot"](), None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_records_prompts_and_evaluation_equal_the_local_engines_in_every_bit(case, world, backbone, new_state):
    method, aggregator, changes = CASES[case]
    there = world(method, aggregator, **changes)
    records = there.rounds()
    assert there.spec.finetunes(records[-1]["round"]) == (case == "fine-tuning")
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
    assert tiny.bits(here.server().shared) == tiny.bits(there.state.server().shared)
    for client in range(3):
        mine, its = here.client(client) or ClientState(), there.kept(client) or ClientState()
        assert tiny.bits(mine.private) == tiny.bits(its.private)
        assert tiny.bits(mine.kept) == tiny.bits(its.kept)


def test_a_client_whose_change_is_implausible_continues_as_in_the_local_engine(world, backbone, new_state, monkeypatch):
    monkeypatch.setattr("fedpgp.federation.protection.IMPLAUSIBLE", 1.0)  # all above the median are refused
    changes = {"protection": True, "rounds": 3}
    there, here = world(**changes), new_state()
    records = there.rounds()
    rounds = tiny.run(FEDPGP, backbone, there.data, state=here, **{**SMALL, **changes})
    assert all(record["dropped"] for record in records)
    assert [record["dropped"] for record in records] == [one.record["dropped"] for one in rounds]
    assert tiny.bits(here.server().shared) == tiny.bits(there.state.server().shared)
    for client in range(3):
        mine, its = here.client(client) or ClientState(), there.kept(client) or ClientState()
        assert tiny.bits(mine.private) == tiny.bits(its.private)


def windows(tensor: torch.Tensor, length: int = 16) -> list[bytes]:
    """Return the bytes of some groups of four numbers of a tensor, as they would be in captured traffic."""
    raw = tensor.detach().cpu().contiguous().numpy().tobytes()
    return [raw[at : at + length] for at in range(0, max(1, len(raw) - length), 64)]


@pytest.mark.parametrize("name", ["fedpgp", "promptfolio", "pfedprompt"])
def test_no_private_part_no_feature_and_no_label_leaves_a_client(name, world, monkeypatch):
    there = world(tiny.small(METHODS[name]), trusted=False)
    secrets = []
    original = OwnStates.keep

    def keep(self, number, counted, state):  # the private parts of every round, not only of the last
        secrets.extend(state.private.values())
        original(self, number, counted, state)

    monkeypatch.setattr(OwnStates, "keep", keep)
    there.rounds()
    assert bool(secrets) == (name != "pfedprompt")  # its clients store features of their images
    secrets += [tensor for tensor in there.spec.first(0).private.values() if tensor.any()]
    secrets += [there.data.train.pooled, *(test.pooled for test in there.data.tests.values())]
    sent = b"".join(there.grid.sent)
    assert all(window in sent for window in windows(there.spec.shared["p_G"]))  # so the search works
    captured = sent + b"".join(content for _, content in there.grid.received)
    for secret in secrets:
        for window in windows(secret):
            assert not any(window) or window not in captured
    for _, content in there.grid.received:  # only names, prompts, counts and figures
        records = read(content)
        assert {*records.array_records} <= {"shared", "control"}
        for record in records.array_records.values():
            assert {*record} <= {*there.spec.shared}
        for record in records.config_records.values():
            assert {*record} <= {"client", "examples", "tests_base", "tests_novel", "run", "round", "after"}


def read(content: bytes) -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(content))


def written(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def meddling(changes, kind=TRAIN, rounds=(2,)):
    """Change replies in some rounds. `changes` maps a node to a function of its reply; None loses the reply."""

    def meddle(at, message, reply):
        if at not in changes or message.metadata.message_type != kind or int(message.metadata.group_id) not in rounds:
            return reply
        return changes[at](read(reply))

    return meddle


def nan(content):
    (name, array), *_ = content.array_records["shared"].items()
    values = array.numpy().copy()
    values.flat[0] = np.nan
    content.array_records["shared"][name] = Array(values)
    return written(content)


def lost(content):
    return None


def first_round(content):
    content.config_records["about"]["round"] = 1
    return written(content)


def other_run(content):
    content.config_records["about"]["run"] = "f" * 32
    return written(content)


def test_an_update_that_may_not_be_used_is_dropped_with_its_reason_and_counts_for_nothing(world, monkeypatch):
    """The aggregator learns the number of faults, not of missing replies. test_update_validation.py has all faults."""
    faulty, without = [], FedAvg.without
    monkeypatch.setattr(FedAvg, "without", lambda self, some: faulty.append(some) or without(self, some))
    there = world(trusted=False, forgiving=True, rounds=3)
    there.grid.meddle = meddling({101: nan, 102: lost})
    records = there.rounds()
    assert [record["participants"] for record in records] == [[0, 1, 2], [0], [0, 1, 2]]
    first, second = records[1]["dropped"]
    assert (first["client"], first["in"], second["client"], second["in"]) == (1, "train", 2, "train")
    assert "p_G" in first["reason"] and "finite" in first["reason"]
    assert "0.3 seconds" in second["reason"]
    assert "dropped" not in records[0] | records[2]
    assert faulty == [0, 1, 0]
    # In round 3, both continue from round 1, as if they had been away in round 2.
    other = world(trusted=False, rounds=3)
    downloads = other.spec.downloads
    monkeypatch.setattr(
        other.spec, "downloads", lambda n, server: {c: d for c, d in downloads(n, server).items() if n != 2 or c == 0}
    )
    other.rounds()
    assert there.trained() == other.trained()


def unclipped(content):
    """An update of a client that does not clip."""
    (name, array), *_ = content.array_records["shared"].items()
    content.array_records["shared"][name] = Array(array.numpy() + 4525)
    return written(content)


def test_an_update_longer_than_the_norm_to_which_clients_clip_is_refused(world):
    privacy = {"differential_privacy": "central", "clipped_by": "client", "clipping": "adaptive"}
    privacy |= {"noise_multiplier": 0.0, "clipping_norm": 0.05}
    there = world(trusted=False, forgiving=True, privacy=PrivacyConfig(**privacy), rounds=3)
    there.grid.meddle = meddling({101: unclipped})
    records = there.rounds()
    assert [record["participants"] for record in records] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "moved by" in records[1]["dropped"][0]["reason"]
    moved = [there.state.server().shared[name] - value for name, value in there.spec.shared.items()]
    assert sum(change.square().sum() for change in moved) ** 0.5 < 3 * 0.06


def other_diagnostics(content):
    content.metric_records["diagnostics"]["made-up"] = 1.0
    return written(content)


def few_figures(content):
    del content.metric_records["shared"]["local"]
    return written(content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (first_round, "^round: .*1.*2"),
        (other_run, "^run: .*'ff.+'0123"),
        (other_diagnostics, "figures .*'made"),
        (few_figures, r"\d figures .*'local'"),
    ],
)
def test_an_evaluation_of_another_round_run_or_form_is_dropped(change, says, world):
    there = world(forgiving=True, trusted=False)
    there.grid.meddle = meddling({100: change}, EVALUATE)
    first, second = there.rounds()
    assert "dropped" not in first
    (dropped,) = second["dropped"]
    assert (dropped["client"], dropped["in"]) == (0, "evaluate")
    assert re.search(says, dropped["reason"])
    assert second["evaluated"] == [1, 2]


def test_outcomes_that_a_client_of_another_party_sends_are_not_read(world):
    def made_up(content):
        content["correct/1.0"] = content["predicted"] = ArrayRecord({"made-up": Array(np.zeros(3, np.uint8))})
        return written(content)

    there = world(forgiving=True, trusted=False)
    there.grid.meddle = meddling({100: made_up}, EVALUATE)
    assert [record.get("dropped") for record in there.rounds()] == [None, None]
    assert there.state.evaluation().correct == {}


def test_if_all_belong_to_one_party_a_client_that_fails_ends_the_run(world):
    there = world()
    there.grid.meddle = meddling({101: nan}, rounds=(1,))
    with raises(TrainingError, where="client 1", problem="p_G"):
        there.rounds()


def test_a_client_that_is_away_is_left_out_and_taken_in_again_and_without_any_the_run_ends(world):
    there = world(forgiving=True, rounds=3)
    assert [record["participants"] for record in there.rounds(1)] == [[0, 1, 2]]
    there.grid.away = {100, 101, 102}
    with raises(TrainingError, where="round 2", problem="0.3 seconds"):
        there.rounds()
    there.grid.away = {101}
    (away,) = there.rounds(1)
    assert (away["round"], away["participants"], away["evaluated"]) == (2, [0, 2], [0, 2])
    assert all("0.3 seconds" in one["reason"] for one in away["dropped"])
    there.grid.away = set()
    assert [record["participants"] for record in there.rounds()] == [[0, 1, 2]]


def test_a_server_that_was_stopped_after_clients_had_trained_repeats_the_round_from_the_same_parts(world, undisturbed):
    stopped = world(rounds=3)
    stopped.rounds(1)
    downloads = stopped.spec.downloads(2, stopped.state.server())
    stopped.nodes.train(2, downloads)  # the server keeps nothing of it
    again = world(before=stopped, rounds=3)
    again.rounds()
    assert again.trained() == undisturbed


def test_a_node_that_comes_back_with_an_old_state_continues_and_the_record_says_so(world):
    there = world(forgiving=True, rounds=3)
    there.rounds(1)
    directory = there.directory / RUN / "client-1"
    shutil.copytree(directory, there.directory / "old")
    there.rounds(1)
    shutil.rmtree(directory)
    shutil.move(there.directory / "old", directory)
    (record,) = there.rounds()
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
def test_a_path_is_not_accepted_as_the_id_of_a_run(run, tmp_path):
    with raises(OutputError, where="run", allowed="32 hexadecimal digits", got=run[:40]):
        own_states(tmp_path, run, 0)


def test_only_the_owner_can_read_private_parts(tmp_path):
    states = OwnStates(tmp_path / "state" / "run" / "client-0")
    for number in (1, 2, 3):
        states.keep(number, number - 1, ClientState({"U": torch.ones(2)}))
    files = sorted(file.name for file in states.directory.iterdir())
    assert files == ["round-000002.safetensors", "round-000003.safetensors"]
    for directory in (states.directory, *states.directory.parents[:2]):  # otherwise the node would not start again
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in states.directory.iterdir()} == {0o600}
    states.directory.chmod(0o755)
    with raises(OutputError, where=str(states.directory)) as refused:
        states.after(3)
    command = re.search("`(.+)`", refused.value.remedy)[1]
    subprocess.run(command, shell=True, check=True)
    assert states.after(3)[0] == 3


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    states = OwnStates(tmp_path / "run")
    states.keep(1, 0, ClientState())
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    with raises(OutputError, where=str(states.directory), problem="another user"):
        states.after(1)


def test_a_full_disk_at_a_node_is_reported_and_saved_parts_stay(world, monkeypatch):
    there = world(trusted=False, forgiving=True, rounds=3)
    there.rounds(1)
    before = [tiny.bits(there.kept(client).private) for client in range(3)]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedpgp.flower.node.write", full)
        (record,) = there.rounds(1)
    assert record["participants"] == []
    reasons = {one["reason"] for one in record["dropped"] if one["in"] == "train"}
    assert len(reasons) == 1 and reasons.pop().startswith("OutputError in train. ")
    assert [tiny.bits(there.kept(client).private) for client in range(3)] == before
    assert [record["participants"] for record in there.rounds()] == [[0, 1, 2]]


def test_a_node_that_does_not_fit_or_is_another_client_is_refused_and_the_others_continue(world):
    def no_data():
        raise DataError("/srv/patients: holds no image")

    there = world(trusted=False, forgiving=True, rounds=1, guests={101: no_data})
    there.grid.apps[200], there.grid.contexts[200] = there.grid.apps[102], there.grid.contexts[102]
    there.nodes.gather()
    (record,) = there.rounds()
    assert record["participants"] == [0, 2]
    first, second = record["refused"]
    assert first["node"] == "101" and first["reason"].startswith("DataError in query. ")
    assert "patients" not in first["reason"]
    assert second["node"] == "200"
    assert "another node is client 2" in second["reason"]


def test_the_key_of_a_node_decides_which_client_it_is_and_the_reported_number_must_agree(world):
    """Node 101 reports that it is client 0 before client 0 is connected; the key of node 200 belongs to no client."""
    there = world(trusted=False, forgiving=True, rounds=2, numbers={100: 0, 101: 1, 102: 2})
    honest = there.grid.apps[101]
    there.grid.apps[101], there.grid.away = there.grid.apps[100], {100}
    there.grid.apps[200], there.grid.contexts[200] = honest, there.grid.contexts[101]
    there.nodes.gather()
    there.grid.away = set()
    (first,) = there.rounds(1)
    assert first["participants"] == [0, 2]
    refused = {refusal["node"]: refusal["reason"] for refusal in first["refused"]}
    assert [*refused] == ["101", "200"]
    assert "client must be 1" in refused["101"] and "got 0" in refused["101"]
    assert "got 1" in refused["200"]
    assert all("node.toml" in reason for reason in refused.values())
    # The node starts again with the right number, and participates.
    there.grid.away = {101}
    there.nodes.evaluate(1, there.state.server(), (1.0,))
    there.grid.apps[101], there.grid.away = honest, set()
    (second,) = there.rounds()
    assert second["participants"] == [0, 1, 2]


def train_nothing(world, answer):
    """Let all nodes answer each request to train immediately with the same message."""
    for node, app in world.grid.apps.items():

        def replies(message, context, app=app):
            training = message.metadata.message_type == TRAIN
            return Message(answer, reply_to=message) if training else app(message, context)

        world.grid.apps[node] = replies


@pytest.mark.parametrize("privacy", [PrivacyConfig(), PrivacyConfig(secure_aggregation=True)])
def test_nodes_that_answer_with_faults_do_not_use_up_rounds_before_the_deadline(privacy, world):
    fault = RecordDict({"fault": ConfigRecord({"reason": "TrainingError in train"})})
    there = world(trusted=False, forgiving=True, rounds=2, privacy=privacy)
    train_nothing(there, fault)
    records = there.rounds()
    assert [record["participants"] for record in records] == [[], []]
    assert all(record["seconds_training"] >= SMALL["deadline"] for record in records)


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_RAISED_EXCEPTION])
def test_if_all_nodes_answer_with_errors_the_run_waits_for_the_deadline_and_ends(code, world):
    there = world(trusted=False, forgiving=True)
    train_nothing(there, Error(code, "unavailable"))
    start = time.monotonic()
    with raises(TrainingError, where="round 1", problem="0.3 seconds"):
        there.rounds()
    assert time.monotonic() - start >= SMALL["deadline"]
    assert there.state.records() == []


def test_nodes_that_do_not_run_the_app_are_named(world):
    there = world(trusted=False, forgiving=True, rounds=1)
    error = Error(ErrorCode.INVALID_FAB, "INVALID_FAB in query")
    there.grid.apps[101] = lambda message, context: Message(error, reply_to=message)
    there.nodes.gather()
    (record,) = there.rounds()
    assert record["participants"] == [0, 2]
    (refused,) = record["refused"]
    assert refused["node"] == "101"
    assert "experiment.toml" in refused["reason"]


def test_an_exception_at_a_node_is_reported_as_its_type_and_phase(world, caplog):
    def unreadable():
        raise PermissionError(13, "Permission denied", "/srv/site1/crown")

    there = world(trusted=False, forgiving=True, rounds=1, guests={101: unreadable})
    (record,) = there.rounds()
    (refused,) = record["refused"]
    assert refused["node"] == "101" and refused["reason"].startswith("NodeError in query. ")
    assert "crown" not in refused["reason"]
    assert "/srv/site1/crown" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fedpgp": "0.0.1"}, ("fedpgp", "0.0.1")),
        ({"checkpoint": "other"}, ("backbone.checkpoint", "fingerprints")),
        ({"classes": ["ant", "zebra"]}, ("class names", "has 'zebra'; only the server has 'alarm clock', 'bus'")),
        ({"classes": [*tiny.NAMES[::-1]]}, ("class names", "order")),
    ],
)
def test_terms_that_differ_are_named(change, says, backbone):
    terms = terms_of(backbone, tiny.task())
    greeting = RecordDict({"about": ConfigRecord(terms)})
    where, problem = says
    with raises(Refused, where=where, problem=problem):
        check_terms(greeting, terms | change)
    check_terms(greeting, terms)


def test_replies_may_come_twice_late_and_in_any_order(world, undisturbed):
    """The grid returns each reply twice, the last one first, and the previous round's replies once more."""
    there = world(rounds=3)
    pull, before = there.grid.pull_messages, []

    def pulled(identifiers):
        found = list(reversed(pull(identifiers)))
        handed = [*found, *found, *before]
        before[:] = found or before
        return handed

    there.grid.pull_messages = pulled
    there.rounds()
    assert there.trained() == undisturbed


def test_messages_are_small(world):
    there = world(tiny.small(METHODS["fedpgp"], context_length=16), rounds=1)
    (record,) = there.rounds()
    size = sum(value.nbytes for value in there.spec.shared.values())
    for name in ("wire_down_train", "wire_up_train", "wire_down_evaluate", "wire_up_evaluate"):
        assert record[name] <= 1.05 * size + 4096
