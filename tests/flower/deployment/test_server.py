"""The log of a ServerApp: clients that are left out, and a run that fails."""

import logging
import sys

import pytest

from fedpgp.errors import OutputError
from fedpgp.flower.deployment.server import Absences, OneLine
from fedpgp.results.run import headline


def record(number, dropped=(), participants=(0,), **more):
    drops = [
        {"client": client, "in": phase, "reason": "no reply. Read the log of the node."} for client, phase in dropped
    ]
    return {"round": number, "participants": [*participants], "dropped": drops, **more}


def test_a_client_that_is_left_out_is_reported_once_with_the_phase_and_again_when_it_is_back():
    absences = Absences()
    told = [
        [*absences.of(one)]
        for one in (
            record(1, participants=(0, 1)),
            record(2, [(1, "train"), (1, "evaluate")]),
            record(3, [(1, "train"), (0, "evaluate")], local=50.0),
            record(4, [(1, "evaluate")], local=50.0),
            record(5, participants=(2,)),  # client 1 is not selected, and no client is evaluated
            record(6, participants=(1,)),
        )
    ]
    assert told == [
        [],
        ["client 1 is left out from round 2 (training) on: no reply. Read the log of the node"],
        ["client 0 is left out from round 3 (evaluation) on: no reply. Read the log of the node"],
        ["client 0 is back in round 4"],
        [],
        ["client 1 is back in round 6"],
    ]


def test_the_line_of_a_round_says_how_many_clients_its_accuracies_cover():
    whole = record(3, [(1, "train")], local=61.25)
    assert headline(whole) == "Local 61.2"
    assert headline(record(3, [(1, "train"), (1, "evaluate")], local=61.25, evaluated=[0, 2, 3])) == (
        "Local 61.2 (covers 3 of 4 clients)"
    )


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OutputError("the directory exists", where="runs/ours", remedy="Choose\nanother one"), 1),
        (ValueError("crown"), 3),
    ],
)
def test_a_run_that_ends_with_an_error_of_fedpgp_is_reported_in_one_line(error, shown):
    logger, heard = logging.Logger("flwr"), []
    handler = logging.Handler()
    handler.emit = lambda entry: heard.append(handler.format(entry))
    logger.addHandler(handler)
    logger.addFilter(OneLine())
    try:
        raise error
    except type(error):
        logger.error("ServerApp raised an exception", exc_info=sys.exc_info()[1])
    logger.error("Exit Code: 201\nAn unhandled exception occurred in the ServerApp.")  # as Flower does
    logger.info("the end")
    if shown == 1:
        assert heard == ["fedpgp: error: runs/ours: the directory exists. Choose another one.", "the end"]
    else:
        assert len(heard) == shown and "Traceback" in heard[0]
