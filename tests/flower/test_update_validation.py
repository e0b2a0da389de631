"""Validation of updates: valid updates pass unchanged, and all others raise Refused and no other exception."""

import ast
import io
import math
import pickle
import random
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedpgp.errors import FedPGPError
from fedpgp.federation.state import ClientState
from fedpgp.flower.update_validation import LARGEST_LOSS, Asked, Refused, arrays, check, read, read_any, unlike_others

ROUND, RUN, MOST = 7, "3f2a", 100
RECEIVED = {"p_G": torch.zeros(3, 4), "gate": torch.ones(2, dtype=torch.float64)}
CONTROL = {"p_G": torch.zeros(3, 4)}
ASKED = Asked(5, ROUND, RUN, RECEIVED, CONTROL, RECEIVED, most_examples=MOST, largest_change=10.0)
TENSORS = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(["f2", "f4", "f8", "i8", "b1"]).flatmap(
        lambda dtype: arrays_of.arrays(
            dtype,
            arrays_of.array_shapes(min_dims=0, min_side=0),
            elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
        )
    ),
    max_size=3,
)


def update():
    """Return tensors of ones, at the distance √(12 + 0) from the received tensors."""
    return {"p_G": torch.ones(3, 4), "gate": torch.ones(2, dtype=torch.float64)}


def reply(shared=None, control=None, losses=None, **about):
    return RecordDict(
        {
            "shared": arrays(shared or update()),
            "control": arrays(control or CONTROL),
            "losses": MetricRecord(losses or {"task": 1.5, "cross-entropy": 0.25}),
            "about": ConfigRecord({"examples": 12, "round": ROUND, "run": RUN, "after": ROUND - 1} | about),
        }
    )


def over_the_wire(content):
    return recorddict_from_proto(ProtoRecordDict.FromString(recorddict_to_proto(content).SerializeToString()))


def with_array(name="p_G", record="shared", **changes):
    """Return a reply with changed fields of one array."""
    content = reply()
    array = content[record][name]
    fields = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data} | changes
    content[record][name] = Array(**fields)
    return content


def npy(values, **options):
    written = io.BytesIO()
    np.save(written, values, **options)
    return written.getvalue()


# ---------------------------------------------------------------------------------------------------- what is right


@given(TENSORS)
def test_tensors_come_back_unchanged_in_any_order(drawn):
    sent = {name: torch.from_numpy(np.array(values)) for name, values in drawn.items()}
    record = arrays(dict(reversed(sent.items())))
    found = read(record, {name: torch.empty_like(value) for name, value in sent.items()})
    assert list(found) == list(sent)
    for name, value in sent.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].numpy().tobytes() == value.numpy().tobytes()
        assert record[name].data == npy(value.numpy())


def test_tensors_that_are_views_are_sent_in_c_order():
    sent = {
        "p": torch.arange(12.0).reshape(3, 4).T,
        "q": torch.arange(12.0)[::2],
        "r": torch.ones(2, requires_grad=True),
    }
    found = read(arrays(sent), sent)
    assert all(torch.equal(found[name], value) for name, value in sent.items())


def test_a_valid_reply_is_an_update_without_a_private_part():
    found = check(over_the_wire(reply()), ASKED)
    assert (found.upload.client, found.upload.examples, found.own) == (5, 12, ClientState())
    assert found.losses == {"task": 1.5, "cross-entropy": 0.25}
    assert found.upload.shared.keys() == RECEIVED.keys()
    assert torch.equal(found.upload.shared["p_G"], torch.ones(3, 4))
    assert torch.equal(found.upload.control["p_G"], torch.zeros(3, 4))


def test_without_control_variates_their_record_may_be_missing_or_empty():
    asked = Asked(5, ROUND, RUN, RECEIVED, {}, RECEIVED, most_examples=MOST)
    content = reply()
    content["control"] = ArrayRecord()
    assert check(content, asked).upload.control == {}
    del content["control"]
    assert check(content, asked).upload.control == {}


def test_the_bounds_themselves_are_allowed():
    for examples in (1, MOST):
        assert check(reply(examples=examples), ASKED).upload.examples == examples
    far = {**update(), "p_G": torch.tensor([10.0] + [0.0] * 11).reshape(3, 4)}
    assert check(reply(far), ASKED)
    assert check(reply(losses={f"l{i}": LARGEST_LOSS for i in range(64)}), ASKED)


# ---------------------------------------------------------------------------------------------------- what is wrong

RIGHT = npy(np.ones((3, 4), "f4"))
HEADER = len(RIGHT) - 48
BAD_ARRAYS = {  # changes of p_G, and texts in the problem: found value, expected value
    "form": ({"stype": "torch.pickle"}, "form", "'torch.pickle'", "'numpy.ndarray'"),
    "type": ({"dtype": "float64"}, "type", "'float64'", "'float32'"),
    "shape": ({"shape": (4, 3)}, "shape", "(4, 3)", "(3, 4)"),
    "huge": ({"shape": (2**62, 2**62)}, "shape", "(4611"),
    "short": ({"data": RIGHT[:-1]}, "length", "175", "176"),
    "long": ({"data": RIGHT + b"\0"}, "length", "177", "176"),
    "none": ({"data": b""}, "length", "0", "176"),
    "fortran": ({"data": npy(np.ones((3, 4), "f4", order="F"))}, "header", "True"),
    "other type": ({"data": npy(np.ones((3, 4), "i4"))}, "header", "<i4"),
    "other shape": ({"data": npy(np.ones((4, 3), "f4"))}, "header", "4, 3"),
    "endian": ({"data": npy(np.ones((3, 4), ">f4"))}, "header", ">f4"),
    "version": ({"data": RIGHT[:6] + b"\2" + RIGHT[7:]}, "header"),
    "nan": ({"data": RIGHT[:-4] + np.float32("nan").tobytes()}, "finite"),
    "infinite": ({"data": RIGHT[:-4] + np.float32("-inf").tobytes()}, "finite"),
}
BAD_REPLIES = {  # a reply, a part of `where`, and texts in the problem
    "a name": (lambda: reply({"p_G": torch.ones(3, 4), "U": torch.ones(2)}), "", "2 tensors", "['p_G', 'U']"),
    "one less": (lambda: reply({"p_G": torch.ones(3, 4)}), "", "1 tensors", "['p_G']", "['p_G', 'gate']"),
    "one more": (lambda: reply({**update(), "U": torch.ones(2)}), "", "3 tensors"),
    "control": (lambda: reply(control=update()), "", "2 tensors", "['p_G']"),
    "too far": (lambda: reply({**update(), "p_G": torch.full((3, 4), 4.0)}), "", "13.9", "10"),
    "too far together": (
        lambda: reply({"p_G": torch.full((3, 4), 2.5), "gate": torch.full((2,), 8.0, dtype=torch.float64)}),
        *("", "13.2", "10"),
    ),
    "far in float32": (lambda: reply({**update(), "p_G": torch.full((3, 4), 3e38)}), "", "1.04e+39"),
    "no examples": (lambda: reply(examples=0), "examples", "has 0 ", "1 to 100"),
    "negative": (lambda: reply(examples=-(2**63)), "examples", "-9223372036854775808"),
    "too many": (lambda: reply(examples=2**63), "examples", "9223372036854775808"),
    "bool": (lambda: reply(examples=True), "examples", "True"),
    "float": (lambda: reply(examples=12.0), "examples", "12.0"),
    "list": (lambda: reply(examples=[12]), "examples", "[12]"),
    "old round": (lambda: reply(round=ROUND - 1), "round", "6", "7"),
    "bool round": (lambda: reply(round=True), "round", "True", "7"),
    "float round": (lambda: reply(round=7.0), "round", "7.0", "7"),
    "other run": (lambda: reply(run="3f2b"), "run", "'3f2b'", "'3f2a'"),
    "continues from a later round": (lambda: reply(after=ROUND), "after", "has 7 ", "round 7"),
    "bytes run": (lambda: reply(run=b"3f2a"), "run", "b'3f2a'"),
    "a fact": (lambda: reply(client=3), "", "5 facts", "['examples', 'round', 'run', 'after', 'client']"),
    "nan loss": (lambda: reply(losses={"task": math.nan}), "'task'", "nan"),
    "large loss": (lambda: reply(losses={"task": 1e300}), "'task'", "1e+300"),
    "int loss": (lambda: reply(losses={"task": 1}), "'task'", "has 1 ", "1e+12"),
    "losses": (lambda: reply(losses={"task": [1.0]}), "'task'", "[1.0]"),
    "many losses": (lambda: reply(losses={f"l{i}": 1.0 for i in range(65)}), "", "65 losses", "64"),
    "loss name": (lambda: reply(losses={"task\n": 1.0}), r"'task\n'", "name"),
    "long name": (lambda: reply(losses={"l" * 65: 1.0}), "'" + "l" * 59, "name"),
    "private": (lambda: with_record("private", arrays(CONTROL)), "", "'private'", "shared, control"),
    "kind": (lambda: with_record("shared", MetricRecord()), "shared", "MetricRecord", "ArrayRecord"),
    "other kind": (lambda: with_record("about", MetricRecord({"examples": 12})), "about", "MetricRecord"),
    "nothing": (RecordDict, "about", "nothing", "ConfigRecord"),
}


def with_record(name, record):
    content = RecordDict({key: value for key, value in reply().items() if key != name})
    content[name] = record
    return content


@pytest.mark.parametrize("record", ["shared", "control"])
@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_an_array_that_is_not_the_expected_one_is_refused(fault, record):
    changes, *named = BAD_ARRAYS[fault]
    with pytest.raises(Refused) as refused:
        check(with_array(record=record, **changes), ASKED)
    assert refused.value.where == "p_G"
    assert all(text in refused.value.problem for text in named), refused.value.problem


@pytest.mark.parametrize("fault", BAD_REPLIES)
def test_a_reply_that_was_not_asked_for_is_refused(fault):
    content, where, *named = BAD_REPLIES[fault]
    with pytest.raises(Refused) as refused:
        check(content(), ASKED)
    assert where in refused.value.where
    assert all(text in refused.value.problem for text in named), refused.value.problem


@given(st.text(), st.text(max_size=200), st.binary(max_size=200), st.lists(st.integers(), max_size=200))
def test_reasons_are_short_lines_of_ascii(name, text, data, shape):
    hostile = [
        with_array(dtype=text),
        with_array(shape=tuple(shape)),
        with_array(data=data),
        with_array(data=RIGHT[:10] + data.ljust(HEADER - 10)[: HEADER - 10] + RIGHT[HEADER:]),
        reply({name + "\ud800": torch.ones(1), **update()}),
        reply(run=text + "!"),
        reply(losses={"\x1b" + text: 1.0}),
        with_record(name + "?", ConfigRecord()),
    ]
    for content in hostile:
        with pytest.raises(Refused) as refused:
            check(content, ASKED)
        assert len(str(refused.value)) < 250
        assert re.fullmatch(r"[ -~]+", str(refused.value))
    assert issubclass(Refused, FedPGPError)


def test_figures_that_other_clients_do_not_have_are_reported():
    assert unlike_others({}) == {}
    assert unlike_others({0: {"a": 1.0, "b": 1.0}, 1: ["b", "a"]}) == {}
    reasons = unlike_others({0: [], 3: ["a", "b"], 4: ["b", "a"], 5: ["a", "b", "c"]})
    assert reasons.keys() == {0, 5}
    assert "[]" in reasons[0] and "['a', 'b', 'c']" in reasons[5]
    assert all("['a', 'b']" in reason for reason in reasons.values())


@pytest.mark.parametrize("shape", [(2**31 - 1,) * 3, (0, 2**62, 2**62), (-1,), (2**63,), (True,), (3, 5)])
def test_an_array_must_have_a_shape_that_fits_its_bytes(shape):
    assert read_any(arrays(update())).keys() == RECEIVED.keys()
    with pytest.raises(Refused) as refused:
        read_any(with_array(shape=shape)["shared"])
    assert "p_G" in refused.value.where


# ------------------------------------------------------------------------------------------------------------- fuzz


def flip(rng, data):
    """Return bytes of which some are changed, removed, doubled or inserted."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind < 2:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place] = rng.randrange(256)
        elif kind == 3:
            del data[place : place + rng.randint(1, 40)]
        else:
            data[place:place] = data[place : place + rng.randint(1, 40)]
        if not data:
            break
    return bytes(data)


def hostile_array(rng):
    """Return a reply with an invalid array."""
    record, name = rng.choice([("shared", "p_G"), ("shared", "gate"), ("control", "p_G")])
    right = reply()[record][name]
    header = len(right.data) - int(np.prod(right.shape)) * np.dtype(right.dtype).itemsize
    values = np.frombuffer(right.data, right.dtype, offset=header).copy()
    values[rng.randrange(len(values))] = rng.choice([math.nan, math.inf, -math.inf])
    other = [t for t in ("float16", "float32", "float64", "int64", "object", "<f4", "V4", "") if t != right.dtype]
    place = rng.randrange(header)
    shape = tuple(rng.choice([-1, 0, 1, 2, 3, 2**31 - 1]) for _ in range(rng.randint(0, 5)))
    lie = rng.choice([b"(2147483647, 2147483647)", b"(3, 4), 'x': 1", b"__import__('os')", b"[" * 40, b"9" * 40])
    changes = rng.choice(
        [
            {"dtype": rng.choice(other)},
            {"shape": shape if shape != right.shape else ()},
            {"stype": rng.choice(["", "numpy", "numpy.ndarray ", "torch", "pickle"])},
            {"data": right.data[: rng.randrange(len(right.data))]},
            {"data": right.data + rng.randbytes(rng.randint(1, 64))},
            {"data": rng.randbytes(len(right.data))},
            {"data": right.data[:place] + bytes([right.data[place] ^ rng.randint(1, 255)]) + right.data[place + 1 :]},
            {"data": right.data[:10] + lie.ljust(header - 10) + right.data[header:]},
            {"data": right.data[:header] + values.tobytes()},
            {"data": pickle.dumps(values)},
        ]
    )
    return with_array(name, record, **changes)


def hostile_reply(rng):
    """Return a reply that is invalid, but not because of an array."""
    content = reply()
    kind = rng.randrange(8)
    if kind == 0:
        record, name = rng.choice([("shared", "p_G"), ("shared", "gate"), ("control", "p_G")])
        content[record][rng.choice(["", "U", "p_g", "p_G ", "../x", "\0", "é" * 999])] = content[record].pop(name)
    elif kind == 1:
        examples = [True, False, 0, -1, MOST + 1, 2**63, 2**64 - 1, -(2**63), 1.5, math.nan, "12", b"12", [12], []]
        content["about"]["examples"] = rng.choice(examples)
    elif kind == 2:
        content["about"]["round"] = rng.choice([ROUND - 1, ROUND + 1, 0, -ROUND, True, 7.0, "7", [7], 2**64 - 1])
    elif kind == 3:
        content["about"]["run"] = rng.choice(["", "3f2", RUN + "\0", RUN.upper(), b"3f2a", 7, [RUN], "x" * 10**5])
    elif kind == 4:
        bad = [math.nan, math.inf, -math.inf, 1e13, 1, 2**64 - 1, [], [0.5], [1, 2]]
        content["losses"]["task"] = rng.choice(bad)
    elif kind == 5:
        for i in range(rng.choice([1, 70])):
            content["losses"][rng.choice(["", " ", "a b", "é", "x" * 65, "a\n", "-"]) + str(i) + " "] = 1.0
    elif kind == 6:
        name = rng.choice(["shared", "control", "losses", "about", "private", "U", "", "shared "])
        others = [ArrayRecord(), MetricRecord(), ConfigRecord(), arrays(CONTROL)]
        del content[name if name in content else "about"]
        content[name] = rng.choice([one for one in others if not isinstance(one, type(reply().get(name)))])
    else:
        factor = rng.choice([1e2, 1e10, 3e38])
        content["shared"] = arrays({**update(), "p_G": factor * torch.ones(3, 4)})
    return content


def must_be_right(content, found):
    """Check that an accepted update has the values that Flower's own reader finds, and that it is within all bounds."""
    assert found.own == ClientState()
    for sent, expected, received in (
        (content["shared"], RECEIVED, found.upload.shared),
        (content["control"], CONTROL, found.upload.control),
    ):
        assert sent.keys() == received.keys() == expected.keys()
        for name, value in received.items():
            assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape)
            assert value.isfinite().all()
            assert value.numpy().tobytes() == sent[name].numpy().tobytes()
    moved = [(value.double() - RECEIVED[name].double()).numpy().ravel() for name, value in found.upload.shared.items()]
    assert np.linalg.norm(np.concatenate(moved)) <= 10 * (1 + 1e-9)
    after = content["about"].pop("after")
    assert type(after) is int
    assert 0 <= after < ROUND
    assert content["about"] == {"examples": found.upload.examples, "round": ROUND, "run": RUN}
    assert 1 <= found.upload.examples <= MOST
    assert found.losses == content["losses"]
    assert all(math.isfinite(value) for value in found.losses.values())
    assert content.keys() == {"shared", "control", "losses", "about"}


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_hostile_replies_cause_only_refusals(seed, monkeypatch):
    """A thousand replies for each seed: half are made invalid, and half are valid replies with changed bytes.

    Of the replies with changed bytes, only replies that Flower can read count: Flower does not pass on others.
    """
    rng, right = random.Random(seed), recorddict_to_proto(reply()).SerializeToString()
    accepted, refused = [], 0
    with monkeypatch.context() as guarded:
        for where, name in ((np, "load"), (ast, "literal_eval"), (pickle, "loads"), (pickle, "load")):
            guarded.setattr(where, name, forbidden)
        for _ in range(500):
            content = rng.choice([hostile_array, hostile_reply])(rng)
            with pytest.raises(Refused):
                check(over_the_wire(content) if rng.random() < 0.5 else content, ASKED)
        while refused + len(accepted) < 500:
            try:
                content = recorddict_from_proto(ProtoRecordDict.FromString(flip(rng, right)))
            except Exception:
                continue
            try:
                accepted.append((content, check(content, ASKED)))
            except Refused:
                refused += 1
    for content, found in accepted:
        must_be_right(content, found)
    assert min(refused, len(accepted)) > 20


def forbidden(*_, **__):
    raise AssertionError("a parser ran on what came from the network")
