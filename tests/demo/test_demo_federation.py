"""The demo's federation: what it computes, how viewers start and stop it, and what it classifies."""

import io
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_visits import classify, visiting
from PIL import Image
from raising import raises
from starlette.testclient import TestClient

from fedpgp.demo import federation, server, uploads
from fedpgp.demo.prompts import Plane, Words, whole_words
from fedpgp.demo.show import BusyError, Show
from fedpgp.demo.stage import CLASSES, CLIENTS, MIXTURES, SUBJECTS, Choices, DemoSetup, choices_of
from fedpgp.demo.views import NO_IMAGES
from fedpgp.errors import CheckpointError, ConfigError, DataError

DRAWINGS, PHOTOGRAPHS = SUBJECTS["drawings"], SUBJECTS["photographs"]
BASE = DRAWINGS.base
CHOICES = {"rounds": 1, "mu": 0.5, "bottleneck": 2}


# ---------------------------------------------------------------------------------------------------------- federation


@pytest.mark.slow  # takes seconds
def test_two_demos_at_once_show_what_the_library_computes_and_all_prompts_classify(stage, show):
    other = Show(lambda subject, progress: stage)
    with visiting(show) as visitor, visiting(other) as second:
        for one in (visitor, second):
            assert one.post("/api/start", json=CHOICES).status_code == 202
        assert show.wait(120) and other.wait(120)
        found = classify(visitor, "cat, zebra, red panda").json()
    moments = list(federation.rounds(stage, Choices(**CHOICES), threading.Event()))
    for one in (show, other):
        shown = one.view()["run"]["rounds"]
        assert [{**view, "seconds": 0} for view in shown[1:]] == [{**m.view, "seconds": 0} for m in moments[1:]]
    view = show.view()
    run = view["run"]
    assert view["phase"] == "finished"
    assert [one["round"] for one in run["rounds"]] == [0, 1]
    last = run["rounds"][-1]
    assert 0 < run["zero_shot"]["local"] <= 100
    assert len(last["local_of"]) == len(run["zero_shot"]["clients"]) == CLIENTS
    assert last["local"] == pytest.approx(np.mean(last["local_of"]))
    assert len(last["words"]) == len(last["to_guidance"]) == 1 + CLIENTS
    assert last["to_global"][0] == pytest.approx(1)
    assert [len(trail) for trail in last["map"]["trails"]] == [2] * (1 + CLIENTS)
    json.dumps(view, allow_nan=False)
    assert [one["model"] for one in found["models"]] == ["zero-shot", "global", *(f"client {i + 1}" for i in range(6))]
    assert found["round"] == 1
    for one in found["models"]:
        assert {name for name, _ in one["best"]} == {"cat", "zebra", "red panda"}
        assert sum(share for _, share in one["best"]) == pytest.approx(1)
    picture = stage.source.test.image(stage.samples[0])
    for one in show.classify(picture, list(BASE))["models"][1:]:
        (expected,) = moments[-1].models[one["model"]].classify(picture, list(BASE))
        assert one["best"] == [(name, pytest.approx(share, abs=1e-5)) for name, share in list(expected.items())[:5]]


def test_one_federation_runs_at_a_time_stops_between_two_rounds_and_starts_again(show, monkeypatch):
    trained, rounds = threading.Event(), federation.rounds

    def told(*given):
        for moment in rounds(*given):
            yield moment
            if moment.view["round"] == 1:
                trained.set()

    monkeypatch.setattr("fedpgp.demo.show.rounds", told)
    with visiting(show) as visitor:
        assert visitor.post("/api/start", json={"rounds": 30}).status_code == 202
        second = visitor.post("/api/start", json={"rounds": 5})
        assert second.status_code == 409
        assert "already running" in second.json()["error"]
        assert trained.wait(60)
        for _ in range(2):  # the second time has no effect
            assert visitor.post("/api/stop").status_code == 202
        assert show.wait(60)
        view = show.view()
        assert view["phase"] == "stopped"
        assert 1 <= view["run"]["rounds"][-1]["round"] < 30
        assert len(classify(visitor, "cat, dog").json()["models"]) == 2 + CLIENTS
        assert visitor.post("/api/start", json={"rounds": 1}).json() == {"run": 2}


def test_another_subject_replaces_the_first_one_but_not_during_a_federation(stage):
    asked = []

    def prepare(subject, progress):
        asked.append(subject)
        return replace(stage, subject=subject)

    show = Show(prepare)
    with visiting(show) as visitor:
        assert visitor.post("/api/start", json={"rounds": 30}).status_code == 202
        busy = visitor.post("/api/subject", json="photographs")
        assert (busy.status_code, "Stop the federation" in busy.json()["error"]) == (409, True)
        show.stop()
        assert show.wait(60)
        version, before = show.version, show.view()
        assert visitor.post("/api/subject", json="photographs").status_code == 202
        assert show.wait(60)
        later, after = show.version, show.view()
        assert (before["subject"], after["subject"], after["phase"]) == ("drawings", "photographs", "ready")
        assert before["run"] is not None
        assert after["run"] is None
        assert later > version
        assert asked == [DRAWINGS, PHOTOGRAPHS]
        assert [one["model"] for one in classify(visitor, "cat, dog").json()["models"]] == ["zero-shot"]
        assert after["setting"]["about"] == PHOTOGRAPHS.about
        assert visitor.post("/api/start", json=CHOICES).json() == {"run": 2}  # visible as a new one
        for wrong in ("/etc", ["photographs"], {}):
            refused = visitor.post("/api/subject", json=wrong)
            assert (refused.status_code, "one of drawings, photographs" in refused.json()["error"]) == (422, True)


def test_a_stage_that_cannot_be_prepared_is_reported_and_nothing_starts():
    def fails(subject, progress):
        raise CheckpointError("the checkpoint is damaged: install fedpgp again")

    show = Show(fails)
    with TestClient(server.create_app(show), base_url="http://localhost") as visitor:
        assert show.wait(10)
        assert show.view()["error"] == "the checkpoint is damaged: install fedpgp again"
        refused = visitor.post("/api/start", json={})
        assert (refused.status_code, "damaged" in refused.json()["error"]) == (409, True)


def test_each_position_of_the_slider_is_more_uneven_than_the_one_before(stage):
    def classes_held(heterogeneity):
        held = federation.holdings(stage, Choices(heterogeneity=heterogeneity))["clients"]
        assert sum(client["examples"] for client in held) == 8 * len(BASE)
        return sum(len(client["classes"]) for client in held)

    found = [classes_held(i) for i in range(len(MIXTURES))]
    assert found == sorted(found, reverse=True)
    assert found[-1] == len(BASE)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"mu": -1}, {"where": "mu", "allowed": "greater than or equal to 0", "got": -1}),
        ({"mu": "1"}, {"where": "mu", "allowed": "a number", "got": "1"}),
        ({"bottleneck": 17}, {"where": "bottleneck", "allowed": "less than or equal to 16"}),
        ({"heterogeneity": 9}, {"where": "heterogeneity", "allowed": "less than 5"}),
        ({"rounds": 10**9}, {"where": "rounds", "allowed": "less than or equal to 30"}),
        ({"data": "/etc"}, {"where": "data"}),
        (["mu"], {"where": "settings", "allowed": "object", "got": ["mu"]}),
    ],
)
def test_invalid_settings_are_refused_with_their_names(visitor, given, fields):
    with raises(ConfigError, **fields) as caught:
        choices_of(given)
    refused = visitor.post("/api/start", json=given)
    assert (refused.status_code, refused.json()["error"]) == (422, str(caught.value))


def test_the_plane_keeps_its_orientation_and_words_are_the_nearest(backbone):
    rng = torch.Generator().manual_seed(0)
    away = torch.randn(7, 60, generator=rng)
    first = Plane.of(away)
    second = Plane.of(-away[:, :], first)
    assert torch.allclose(first.basis @ first.basis.T, torch.eye(2, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(second.basis, first.basis, atol=1e-6)
    assert 0 < first.shown < 1
    ids = backbone.tokenizer("banana telephone", add_special_tokens=False)["input_ids"]
    assert Words(backbone).nearest(3 * backbone.text.embed(torch.tensor(ids))) == ["banana", "telephone"]


@pytest.mark.parametrize(
    "tokens", [["ba</w>", "ban", None], ["▁ba", "n", "▁"], ["Ġba", "n", "Ċ"], ["ba", "##n", "##ana"]], ids=str
)
def test_whole_words_are_found_by_the_marks_of_the_tokenizer(tokens):
    assert [word for word in whole_words(tokens).values() if word] == ["ba"]


# -------------------------------------------------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return DemoSetup.prepare(PHOTOGRAPHS, tmp_path_factory.mktemp("cache"))


def turned_photograph():
    """Return a JPEG file as a camera writes it: not square, and rotated by its EXIF data."""
    content, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).resize((450, 300)).save(content, "JPEG", exif=exif)
    return content.getvalue()


def test_photographs_have_features_but_no_images_and_are_distributed(photographs):
    held = federation.holdings(photographs, Choices())["clients"]
    assert [len(client["classes"]) for client in held] == [CLASSES // CLIENTS] * CLIENTS
    assert all(client["pictures"] == [] for client in held)
    assert photographs.samples == ()
    assert photographs.picture("train", 0) is None
    shown = photographs.source.class_names
    assert shown == (*PHOTOGRAPHS.base, *PHOTOGRAPHS.novel)


def test_a_photograph_is_classified_as_predict_classifies_its_file(photographs, tmp_path):
    names = ["hedgehog", "pizza", "grand piano"]
    (tmp_path / "photograph.jpg").write_bytes(turned_photograph())
    (expected,) = federation.zero_shot(photographs).classify(tmp_path / "photograph.jpg", names)
    show = Show(lambda subject, progress: photographs)
    with visiting(show) as visitor:
        setting = show.view()["setting"]
        found = classify(visitor, ", ".join(names), turned_photograph()).json()
    assert setting["samples"] == []
    assert setting["about"].endswith(NO_IMAGES)
    assert [one["model"] for one in found["models"]] == ["zero-shot"]
    assert dict(found["models"][0]["best"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_prompts_trained_on_photographs_classify_one(photographs):
    show = Show(lambda subject, progress: photographs)
    with visiting(show) as visitor:
        assert visitor.post("/api/start", json={"rounds": 1}).status_code == 202
        assert show.wait(120)
        assert show.view()["phase"] == "finished"
        assert len(classify(visitor, "cat, dog", turned_photograph()).json()["models"]) == 2 + CLIENTS


def test_no_client_has_novel_classes(stage):
    for subject in SUBJECTS.values():
        assert len({*subject.base, *subject.novel}) == len(subject.base) + len(subject.novel) == 2 * CLASSES
    held = {name for client in federation.holdings(stage, Choices())["clients"] for name, _ in client["classes"]}
    assert held == set(BASE)
    with pytest.raises(DataError):
        uploads.picture_of(b"")
    with pytest.raises(BusyError):
        Show(lambda subject, progress: stage).start(Choices())
