"""SecAgg+: the sum and nothing else at the server, with clients that drop out or send what they like."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from in_process_grid import InProcessGrid
from test_flower import RUN, World, _read, _written, windows

from fedpgp.config import FederationConfig, PrivacyConfig
from fedpgp.data.own import counts_of
from fedpgp.errors import TooFewError
from fedpgp.federation.client_app import client_app
from fedpgp.federation.course import Course, aggregator_for
from fedpgp.federation.flower import Guest, Nodes, answer, terms_of
from fedpgp.federation.jobs import Federation
from fedpgp.federation.mods import mods
from fedpgp.federation.node import Node
from fedpgp.federation.privacy import protected
from fedpgp.federation.secure import quantisation_bound
from fedpgp.methods import METHODS

SECURE = PrivacyConfig(secure_aggregation=True, threshold=0.5)
CLASSES = ((1, 5), (2, 7), (3, 6), (1, 2), (5, 6))
EXAMPLES = (6, 5, 7, 4, 9)


@pytest.fixture
def world(backbone, tmp_path, new_state):
    def make(privacy, below="", forgiving=True, clients=5, **changes):
        method = tiny.small(METHODS["fedpgp"])
        data = tiny.data(backbone, classes=CLASSES[:clients], examples=EXAMPLES[:clients])
        settings = FederationConfig(**{**tiny.SETTINGS, "rounds": 2, **changes})
        aggregator = protected(privacy, aggregator_for(method))
        course = Course(method, data.task, backbone, settings, 0, aggregator)

        def app(client: int):
            alone = replace(data, task=replace(data.task, clients=(data.task.clients[client],)))
            node = Node(
                Federation(course, alone, backbone), backbone.towers(method.reads), client, Path(tmp_path) / below
            )
            guest = Guest(node, terms_of(backbone, data.task), counts_of(alone.task))
            return client_app(
                lambda kind, content, context: answer(kind, content, lambda: guest, trusted=False), mods(vars(privacy))
            )

        grid = InProcessGrid({100 + i: app(i) for i in range(clients)})
        nodes = Nodes(grid, course, RUN, terms_of(backbone, data.task), {}, 0.3, forgiving, privacy)
        return World(grid, nodes, new_state(), course, data, Path(tmp_path) / below)

    return make


def stages():
    """The stage of each message that a node is sent in training, which its mod takes out of the message."""
    order = [Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK]
    counts: dict[int, int] = {}

    def of(node, message) -> str:
        if message.metadata.message_type != "train":
            return ""
        counts[node] = counts.get(node, 0) + 1
        return order[(counts[node] - 1) % 4]

    return of


@pytest.mark.parametrize("private", [False, True], ids=["weighted", "uniform"])
def test_the_mean_is_that_of_plain_aggregation_but_for_the_quantisation(private, world):
    noiseless = {"differential_privacy": "central", "clipped_by": "client", "noise_multiplier": 0.0}
    noiseless |= {"clipping_norm": 100.0}
    secure = PrivacyConfig(secure_aggregation=True, **(noiseless if private else {}))
    plain = PrivacyConfig(**(noiseless if private else {}))
    found, expected = world(secure, rounds=1), world(plain, below="plain", rounds=1)
    (record,), _ = found.rounds(), expected.rounds()
    assert record["participants"] == [0, 1, 2, 3, 4]
    weights = [1.0] * 5 if private else [n / max(EXAMPLES) for n in EXAMPLES]
    bound = quantisation_bound(5, secure.value_range, weights)
    mine, its = found.state.server().shared, expected.state.server().shared
    for name, value in its.items():
        off = (mine[name] - value).abs().max().item()
        assert 0 < off <= bound + 1e-7
    for client in range(5):  # what each keeps is exact: it never went through the sum
        assert torch.equal(found.kept(client).private["U"], expected.kept(client).private["U"])
    assert record["loss_task"] == pytest.approx(expected.state.records()[0]["loss_task"])


def test_the_server_sees_no_update_and_the_same_update_looks_another_way_each_time(world):
    uploads = []
    original = Node.train

    def train(self, *arguments):
        update, after = original(self, *arguments)
        uploads.append(update.upload.shared)
        return update, after

    vectors = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "train", train)
        for below in ("once", "again"):
            there = world(SECURE, below=below, rounds=1)
            there.rounds()
            captured = b"".join(content for _, content in there.grid.received)
            start = there.course.shared["p_G"]
            for shared in uploads:
                change = shared["p_G"].double() - start.double()
                secrets = [shared["p_G"], change, change.float()]
                assert not any(window in captured for secret in secrets for window in windows(secret))
            masked = [
                np.frombuffer(found[1][128:], np.int64)
                for node, content in there.grid.received
                if node == 100
                if (found := _read(content).config_records.get(RECORD_KEY_CONFIGS, {}).get(Key.MASKED_PARAMETERS))
            ]
            vectors += masked
    first, second = vectors
    assert not np.array_equal(first, second)
    change = (uploads[0]["p_G"] - start).flatten().numpy()
    assert abs(np.corrcoef(first, change)[0, 1]) < 0.3
    assert first.std() > 0.2 * 2**32


@pytest.mark.parametrize("stage", [Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK])
def test_a_client_that_drops_out_is_survived_and_the_mean_is_that_of_the_others(stage, world):
    there = world(SECURE, rounds=2)
    of = stages()
    gone = set()

    def meddle(node, message, reply):
        if node == 101 and of(node, message) == stage and not there.state.rounds():
            gone.add(node)
        return None if node in gone and message.metadata.message_type == "train" else reply

    there.grid.meddle = meddle
    first = there.rounds(1)[0]
    gone.clear()
    in_sum = [0, 1, 2, 3, 4] if stage == Stage.UNMASK else [0, 2, 3, 4]
    assert first["participants"] == in_sum
    if stage != Stage.UNMASK:
        assert [one["client"] for one in first["dropped"]] == [1]
    (second,) = there.rounds()
    assert second["participants"] == [0, 1, 2, 3, 4]


def test_below_the_threshold_the_round_is_lost_and_the_next_one_works(world):
    there = world(PrivacyConfig(secure_aggregation=True, threshold=0.8))
    of = stages()
    quiet = {101, 102, 103}

    def meddle(node, message, reply):
        stage = of(node, message)
        return None if node in quiet and stage == Stage.COLLECT_MASKED_VECTORS else reply

    there.grid.meddle = meddle
    before = there.course.shared["p_G"]
    first = there.rounds(1)[0]
    assert first["participants"] == []
    assert "too few clients were left for secure aggregation" in first["lost"]
    assert torch.equal(there.state.server().shared["p_G"], before)
    quiet.clear()
    (second,) = there.rounds()
    assert second["participants"] == [0, 1, 2, 3, 4]


def no_keys(content):
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord({"pk1": b"x", "pk2": b"y"})


def nothing(content):
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord()


def no_record(content):
    content["shared"] = ArrayRecord()
    del content[RECORD_KEY_CONFIGS]


def huge(content):
    secret = content.config_records[RECORD_KEY_CONFIGS]
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    secret[Key.MASKED_PARAMETERS] = [header.ljust(127) + b"\n"] * 2


def pickled(content):
    secret = content.config_records[RECORD_KEY_CONFIGS]
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    secret[Key.MASKED_PARAMETERS] = [header.ljust(127) + b"\ncos\nsystem\n(S'true'\ntR."] * 2


def wrong_shares(content):
    secret = content.config_records[RECORD_KEY_CONFIGS]
    secret[Key.SHARE_LIST] = [bytes(len(share)) for share in secret[Key.SHARE_LIST]]


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (Stage.SETUP, no_keys),
        (Stage.SETUP, nothing),
        (Stage.SETUP, no_record),
        (Stage.SHARE_KEYS, nothing),
        (Stage.SHARE_KEYS, no_record),
        (Stage.COLLECT_MASKED_VECTORS, huge),
        (Stage.COLLECT_MASKED_VECTORS, pickled),
        (Stage.COLLECT_MASKED_VECTORS, nothing),
        (Stage.UNMASK, wrong_shares),
        (Stage.UNMASK, no_record),
    ],
)
def test_what_a_client_makes_up_costs_a_round_at_most(stage, change, world):
    there = world(SECURE)
    of = stages()
    hostile = {101}

    def meddle(node, message, reply):
        if of(node, message) == stage and node in hostile:
            content = _read(reply)
            change(content)
            return _written(content)
        return reply

    there.grid.meddle = meddle
    before = there.course.shared["p_G"]
    first = there.rounds(1)[0]
    if first["participants"]:
        assert first["participants"] in ([0, 2, 3, 4], [0, 1, 2, 3, 4])
        assert (there.state.server().shared["p_G"] - before).abs().max() < 1
    else:
        assert first["lost"]
        assert torch.equal(there.state.server().shared["p_G"], before)
    hostile.clear()
    (second,) = there.rounds()
    assert second["participants"]


def test_two_clients_are_too_few(world):
    there = world(SECURE, clients=2, forgiving=False)
    with pytest.raises(TooFewError, match="needs 3 to 1000 clients in a round, got 2"):
        there.rounds()
