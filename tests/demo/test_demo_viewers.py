"""Several viewers of one demo: all see the same state, and the view says what each of them did."""

import asyncio
import json
import threading

import pytest
from demo_visits import visiting
from starlette.testclient import TestClient

from fedpgp.demo import server
from fedpgp.demo.federation import Moment
from fedpgp.demo.show import Show

FIGURES = {"local": 50.0, "base": 50.0, "novel": 50.0}


class Training:
    """Takes the place of the training: rounds end when the test says so."""

    def __init__(self):
        self.may_end = threading.Semaphore(0)

    def rounds(self, stage, choices, stop):
        for number in range(choices.rounds + 1):
            if number:
                assert self.may_end.acquire(timeout=10)
            yield Moment({"round": number, **FIGURES, "words": [], "map": {"shown": 1.0}}, {})
            if number and stop.is_set():
                return


@pytest.fixture
def training(monkeypatch):
    training = Training()
    monkeypatch.setattr("fedpgp.demo.show.rounds", training.rounds)
    monkeypatch.setattr("fedpgp.demo.show.untrained", lambda stage, choices: {**FIGURES, "clients": [50.0] * 6})
    return training


@pytest.fixture
def viewers(show, training):
    """Send a request as the viewer with this name."""
    with visiting(show) as client:

        def request(viewer, path, value=None):
            return client.post(path, json=value, headers={"x-viewer": viewer})

        yield request
        show.stop()
        training.may_end.release(100)


def first_view(show):
    """Return the view that a new stream sends first."""
    return json.loads(asyncio.run(anext(server._news(show))).removeprefix("data: "))


def reached(show, phase, number):
    """Wait until the federation with this number is in a phase, and return the view."""
    for _ in range(1000):
        view = show.view()
        if view["phase"] == phase and view["run"]["number"] == number:
            return view
        threading.Event().wait(0.01)
    raise AssertionError((view["phase"], view["run"]["number"]))


def test_a_viewer_who_comes_late_or_comes_back_gets_all_that_the_first_one_sees(show, viewers, training):
    viewers("anna", "/api/start", {"rounds": 3, "mu": 2})
    training.may_end.release(2)
    while len(show.view()["run"]["rounds"]) < 3:
        threading.Event().wait(0.01)
    view = first_view(show)
    assert (view["phase"], view["run"]["choices"]["mu"]) == ("running", 2)
    assert [one["round"] for one in view["run"]["rounds"]] == [0, 1, 2]
    assert ["map" in one for one in view["run"]["rounds"]] == [False, False, True]  # the earlier ones are not shown
    assert view["run"]["zero_shot"]["clients"] == [50.0] * 6
    assert len(view["run"]["clients"]["clients"]) == 6
    assert len(view["setting"]["base"]) == 24


def test_two_viewers_press_start_and_stop_at_the_same_time(show, viewers, training):
    answers = [viewers(name, "/api/start", {"rounds": 5}) for name in ("anna", "ben")]
    assert [answer.status_code for answer in answers] == [202, 409]
    assert "already running" in answers[1].json()["error"]
    assert show.view()["action"] == {"by": "anna", "what": "started the federation"}
    assert [viewers(name, "/api/stop").status_code for name in ("ben", "anna")] == [202, 202]
    assert show.view()["action"] == {"by": "ben", "what": "stopped the federation"}
    assert viewers("anna", "/api/subject", "photographs").status_code == 409
    training.may_end.release()
    assert reached(show, "stopped", 1)["run"]["rounds"][-1]["round"] == 1


def test_a_moved_slider_starts_the_federation_again_and_keeps_the_one_before(show, viewers, training):
    viewers("anna", "/api/start", {"rounds": 2, "mu": 1})
    for mu in (2, 3):  # moved again before the round has ended
        assert viewers("anna", "/api/start?replaces=1", {"rounds": 2, "mu": mu}).status_code == 202
    view = show.view()
    training.may_end.release(4)
    after = reached(show, "finished", 2)
    assert view["run"]["choices"]["mu"] in (1, 3)
    assert after["run"]["choices"]["mu"] == 3
    assert after["before"]["choices"]["mu"] == 1
    assert after["action"] == {"by": "anna", "what": "moved μ to 3, so the federation starts again"}


def test_a_moved_slider_of_a_federation_that_another_viewer_has_changed_is_refused(show, viewers, training):
    viewers("anna", "/api/start", {"rounds": 2})
    viewers("ben", "/api/start?replaces=1", {"rounds": 2, "mu": 3})
    training.may_end.release()
    reached(show, "running", 2)
    late = viewers("anna", "/api/start?replaces=1", {"rounds": 2, "mu": 4})
    assert (late.status_code, "another viewer" in late.json()["error"]) == (409, True)
    assert viewers("ben", "/api/start?replaces=1", {"rounds": 2, "mu": 5}).status_code == 202  # ben's own: just later
    viewers("anna", "/api/stop")  # also the federation that would come next
    training.may_end.release(3)
    assert reached(show, "stopped", 2)["action"]["by"] == "anna"
    assert viewers("ben", "/api/start?replaces=2", {"mu": 1}).status_code == 409  # it has ended
    assert viewers("ben", "/api/start?replaces=x", {"mu": 1}).status_code == 422


@pytest.mark.parametrize("name", ["", "<b>", "x" * 50, "A b"])
def test_a_page_with_another_kind_of_name_has_no_name(show, viewers, name):
    assert viewers(name, "/api/start", {}).status_code == 202
    assert show.view()["action"]["by"] == ""


def test_a_failed_federation_does_not_start_the_next_one(show, viewers, training, monkeypatch):
    def fails(stage, choices, stop):
        yield from training.rounds(stage, choices, stop)
        raise ValueError("a defect")

    monkeypatch.setattr("fedpgp.demo.show.rounds", fails)
    viewers("anna", "/api/start", {"rounds": 2})
    viewers("anna", "/api/start?replaces=1", {"rounds": 2, "mu": 3})
    training.may_end.release()
    assert "terminal" in reached(show, "failed", 1)["error"]


def test_the_stream_shows_signs_of_life_and_ends_with_the_server(show, monkeypatch):
    monkeypatch.setattr(server, "ALIVE", 0.2)

    async def listened():
        news = server._news(show)
        found = [await anext(news), await anext(news)]
        show.close()
        return found, [one async for one in news]

    (view, alive), rest = asyncio.run(listened())
    assert json.loads(view.removeprefix("data: "))["phase"] == "preparing"
    assert alive.startswith("event: alive\ndata: ")  # with data, because a browser ignores other events
    assert rest == []


def test_a_page_recognizes_another_server(stage):
    first, second = (Show(lambda subject, progress: stage).view()["server"] for _ in range(2))
    assert first != second


def test_a_hundred_streams_cost_one_view(show, monkeypatch):
    written, view = [], Show.view
    monkeypatch.setattr(Show, "view", lambda self: written.append(1) or view(self))

    async def listened():
        streams = [server._news(show) for _ in range(100)]
        return {await anext(stream) for stream in streams}

    with TestClient(server.create_app(show), base_url="http://127.0.0.1"):
        assert show.wait(10)
        assert len(asyncio.run(listened())) == 1
    assert len(written) == 1
