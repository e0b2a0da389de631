"""SecAgg+: the server learns only the sum, with clients that drop out or send wrong values."""

from itertools import count

import numpy as np
import pytest
import tiny
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from raising import raises
from test_nodes import open_world, read, windows, written

from fedpgp.errors import TooFewError
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.flower.node import Node
from fedpgp.flower.secure_aggregation import STEPS

SECURE = PrivacyConfig(secure_aggregation=True, threshold=0.5)
CLASSES = ((1, 5), (2, 7), (3, 6), (1, 2), (5, 6))
EXAMPLES = (6, 5, 7, 4, 9)
STAGES = [Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK]


@pytest.fixture
def world(backbone, tmp_path, new_state):
    numbers = count()

    def make(privacy, clients=5, **more):
        more = {"forgiving": True, "path_points": 1, "eval_every": 100, **more}
        data = tiny.data(backbone, classes=CLASSES[:clients], examples=EXAMPLES[:clients])
        directory = tmp_path / str(next(numbers))
        return open_world(backbone, directory, new_state(), trusted=False, privacy=privacy, data=data, **more)

    return make


def meddling(change):
    """Change replies to training: `change` gets node, round, stage and reply, and returns a reply, or None to lose it.

    Flower's mod removes the stage from the message, so the stage is the number of messages to the node in the round.
    """
    seen = {}

    def meddle(node, message, reply):
        if message.metadata.message_type != "train":
            return reply
        number = int(message.metadata.group_id)
        stage = seen[node, number] = seen.get((node, number), -1) + 1
        return change(node, number, STAGES[stage], reply)

    return meddle


@pytest.mark.parametrize("private", [False, True], ids=["weighted", "uniform"])
def test_the_mean_equals_plain_aggregation_up_to_the_quantization(private, world):
    noiseless = {"differential_privacy": "central", "clipped_by": "client", "noise_multiplier": 0.0}
    noiseless |= {"clipping_norm": 100.0}
    secure = PrivacyConfig(secure_aggregation=True, **(noiseless if private else {}))
    plain = PrivacyConfig(**(noiseless if private else {}))
    found, expected = world(secure, rounds=1), world(plain, rounds=1)
    (record,), _ = found.rounds(), expected.rounds()
    assert record["participants"] == [0, 1, 2, 3, 4]
    weights = [1.0] * 5 if private else [n / max(EXAMPLES) for n in EXAMPLES]
    bound = 2 * 5 * 2 * secure.value_range / STEPS / sum(weights)
    mine, its = found.state.server().shared, expected.state.server().shared
    for name, value in its.items():
        off = (mine[name] - value).abs().max().item()
        assert 0 < off <= bound + 1e-7
    for client in range(5):  # the private parts are exact: they were never in the sum
        assert torch.equal(found.kept(client).private["U"], expected.kept(client).private["U"])
    assert record["loss_task"] == pytest.approx(expected.state.records()[0]["loss_task"])


def test_the_server_sees_no_update_and_equal_updates_are_masked_differently_each_time(world, monkeypatch):
    uploads, vectors = [], []
    original = Node.train

    def train(self, *arguments):
        update, after = original(self, *arguments)
        uploads.append(update.upload.shared)
        return update, after

    monkeypatch.setattr(Node, "train", train)
    for _ in range(2):
        there = world(SECURE, rounds=1)
        there.rounds()
        captured = b"".join(content for _, content in there.grid.received)
        start = there.spec.shared["p_G"]
        for shared in uploads:
            change = shared["p_G"].double() - start.double()
            secrets = [shared["p_G"], change, change.float()]
            assert not any(window in captured for secret in secrets for window in windows(secret))
        vectors += [
            np.frombuffer(found[1][128:], np.int64)
            for node, content in there.grid.received
            if node == 100
            if (found := read(content).config_records.get(RECORD_KEY_CONFIGS, {}).get(Key.MASKED_PARAMETERS))
        ]
    first, second = vectors
    assert not np.array_equal(first, second)
    change = (uploads[0]["p_G"] - start).flatten().numpy()
    assert abs(np.corrcoef(first, change)[0, 1]) < 0.3
    assert first.std() > 0.2 * 2**32


def test_after_a_client_drops_out_at_any_stage_the_mean_is_the_mean_of_the_others(world):
    """A client drops out in round 1 at the first stage, and so on; in the last round no client does."""
    there = world(SECURE, rounds=len(STAGES) + 1)
    there.grid.meddle = meddling(
        lambda node, number, stage, reply: None if node == 101 and STAGES.index(stage) >= number - 1 else reply
    )
    *records, last = there.rounds()
    for stage, record in zip(STAGES, records, strict=True):
        in_sum = stage == Stage.UNMASK  # its masked vector arrived before it dropped out
        assert record["participants"] == ([0, 1, 2, 3, 4] if in_sum else [0, 2, 3, 4]), stage
        assert [one["client"] for one in record.get("dropped", [])] == ([] if in_sum else [1]), stage
    assert last["participants"] == [0, 1, 2, 3, 4]


def test_below_the_threshold_the_round_is_lost_and_the_next_one_works(world):
    there = world(PrivacyConfig(secure_aggregation=True, threshold=0.8))

    def change(node, number, stage, reply):
        return None if number == 1 and node <= 102 and stage == Stage.COLLECT_MASKED_VECTORS else reply

    there.grid.meddle = meddling(change)
    before = there.spec.shared["p_G"]
    (first,) = there.rounds(1)
    assert first["participants"] == []
    assert "too few clients were left for secure aggregation" in first["lost"]
    assert torch.equal(there.state.server().shared["p_G"], before)
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


MADE_UP = [
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
]


@pytest.mark.slow
def test_an_invented_reply_costs_at_most_a_round(world):
    """The client sends another wrong reply in every round; in the last round it is honest."""
    there = world(SECURE, rounds=len(MADE_UP) + 1)

    def made_up(node, number, stage, reply):
        if node != 101 or number > len(MADE_UP) or stage != MADE_UP[number - 1][0]:
            return reply
        content = read(reply)
        MADE_UP[number - 1][1](content)
        return written(content)

    there.grid.meddle = meddling(made_up)
    before = there.spec.shared["p_G"]
    for (stage, change), record in zip(MADE_UP, there.each(), strict=False):
        after = there.state.server().shared["p_G"]
        if record["participants"]:
            assert record["participants"] in ([0, 2, 3, 4], [0, 1, 2, 3, 4]), (stage, change)
            assert (after - before).abs().max() < 1
        else:
            assert record["lost"], (stage, change)
            assert torch.equal(after, before)
        before = after
    (last,) = there.rounds()
    assert last["participants"] == [0, 1, 2, 3, 4]


def test_two_clients_are_too_few(world):
    there = world(SECURE, clients=2, forgiving=False)
    with raises(TooFewError, where="clients", allowed="3 to 1000", got=2):
        there.rounds()
