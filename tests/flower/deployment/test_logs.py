"""One format for what a server, a node, Flower's processes and libraries report."""

import json
import logging
import re
import subprocess
import sys
import warnings

import pytest

from fedpgp.errors import ConfigError
from fedpgp.flower.deployment.logs import Log, Output, one_format

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  "
FLOWER = "\x1b[92mINFO \x1b[0m:      "


@pytest.fixture
def written(tmp_path):
    """A file for a log, and the function that reads its records as JSON, without the time."""
    stream = (tmp_path / "log").open("w+")

    def records():
        found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", one.pop("time")) for one in found)
        return found

    with stream:
        yield stream, records


def test_each_of_flowers_formats_becomes_a_record(written):
    stream, records = written
    output = Output(Log(stream, as_json=True), "flower")
    output.feed(
        f"{FLOWER}Starting Flower SuperLink\n{FLOWER}\n"
        "2026-11-30T21:16:51.090Z WARNING [uvicorn.error] slow\n"
        "INFO:     Started server process [31812]\n"
        "/lib/x.py:12: DeprecationWarning: f is old\n  f()\n"
        "plain\n"
    )
    assert records() == [
        {"level": "INFO", "source": "flower", "message": "Starting Flower SuperLink"},
        {"level": "WARNING", "source": "uvicorn", "message": "slow"},
        {"level": "INFO", "source": "flower", "message": "Started server process [31812]"},
        {"level": "WARNING", "source": "warnings", "message": "DeprecationWarning: f is old\n  f()\nplain"},
    ]


def test_a_traceback_is_one_record_and_an_incomplete_line_waits_for_its_rest(written):
    stream, records = written
    output = Output(Log(stream, as_json=True), "flower")
    output.feed("\x1b[91mERROR \x1b[0m:     failed\nTraceback (most recent call last):\n  File\nValueError: x\nhal")
    output.feed("f a line\n")
    output.feed("ValueError: last", last=True)
    assert [(one["level"], one["message"]) for one in records()] == [
        ("ERROR", "failed\nTraceback (most recent call last):\n  File\nValueError: x"),
        ("INFO", "half a line"),
        ("ERROR", "ValueError: last"),
    ]


def test_records_have_the_run_and_the_round_while_they_are_known(written):
    stream, records = written
    log = Log(stream, as_json=True, client=1)
    output = Output(log, "flower")
    for message in ("idle", "[RUN 7, ROUND 2]", "Receiving: train message", "Sent successfully", "idle"):
        output.feed(f"{FLOWER}{message}\n")
    known = [(one["client"], one.get("run"), one.get("round")) for one in records()]
    assert known == [(1, None, None), (1, "7", "2"), (1, "7", "2"), (1, "7", "2"), (1, None, None)]
    Output(log, "app", run="9").feed(f"{FLOWER}round 3 of 10: Local 61.5\n")
    assert records()[-1] == {
        **{"level": "INFO", "source": "app", "message": "round 3 of 10: Local 61.5"},
        **{"client": 1, "run": "9", "round": "3"},
    }


def test_no_token_no_control_character_and_no_request_of_a_monitor_is_logged(written):
    stream, records = written
    heard = []
    log = Log(stream, as_json=True)
    log.heard = heard.append
    output = Output(log, "flower")
    output.feed(f"{FLOWER}Running: flwr-serverapp --token s3cret --insecure\n{FLOWER}bell \x07\x1b]0;title\n")
    output.feed(f"{FLOWER}ControlServicer.ListNodes\n")
    output.feed(
        '2026-11-30T21:17:20.807Z INFO [uvicorn.access] 127.0.0.1:1 - "POST /v1/control/list-nodes HTTP/1.1" 200\n'
    )
    assert [one["message"] for one in records()] == [
        "Running: flwr-serverapp --token … --insecure",
        "bell ]0;title",
    ]
    assert len(heard) == 2


def test_everything_that_a_process_and_its_children_report_has_the_format(capfd):
    with one_format(as_json=False):
        logging.getLogger("fedpgp").warning("refused\nthe rest")
        logging.getLogger("fedpgp.flower.node").info("told")
        logging.getLogger("httpx").info("not told")
        logging.getLogger("other.part").error("also")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        subprocess.run([sys.executable, "-c", f"print({FLOWER!r} + 'out')"], check=True)
    print("after")
    out, err = capfd.readouterr()
    assert out == "after\n"
    lines = [line for line in err.splitlines() if "warnings.warn(" not in line]
    expected = ("WARNING  test_logs: refused", "    the rest", "INFO     node: told", "ERROR    other: also")
    expected = (*expected, "WARNING  warnings: .*DeprecationWarning: old", "INFO     flower: out")
    for text, line in zip(expected, lines, strict=True):
        assert re.fullmatch(text if text.startswith(" ") else TIME + text, line), line


def test_an_error_is_a_record_if_records_are_json(capfd):
    error = ConfigError("no", where="node.toml", remedy="Correct it")
    with pytest.raises(SystemExit) as ended, one_format(as_json=True, client=3):
        raise error
    assert ended.value.code == 2
    record = json.loads(capfd.readouterr().err)
    assert (record["level"], record["message"], record["client"]) == ("ERROR", str(error), 3)
    with pytest.raises(ConfigError), one_format(as_json=False):
        raise error
