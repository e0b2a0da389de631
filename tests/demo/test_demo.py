"""The demo without a browser: what the server does and refuses, and what a federation on it shows."""

import asyncio
import io
import json
import socket
import struct
import threading
import zlib
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from fedpgp.data.features import split_features
from fedpgp.demo import federation, server
from fedpgp.demo.guard import LARGEST, Guard, answers_to
from fedpgp.demo.prompts import Plane, Words, whole_words
from fedpgp.demo.show import BusyError, Show
from fedpgp.demo.stage import CLASSES, CLIENTS, MIXTURES, SUBJECTS, Choices, DemoSetup, choices_of, part_of
from fedpgp.errors import CheckpointError, ConfigError, DataError

SCRIPT = "<script>alert(1)</script>"
PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "a\x00b.png",
    "C:\\x.png",
    "%2e%2e%2f.png",
    "x" * 3000,
]


DRAWINGS, PHOTOGRAPHS = SUBJECTS["drawings"], SUBJECTS["photographs"]
BASE = DRAWINGS.base
CHOICES = {"rounds": 1, "mu": 0.5, "bottleneck": 2}


@pytest.fixture(scope="module")
def stage(pictograms, compact, cache):
    """The demo's classes with a few images each."""

    def thin(dataset, per_class):
        chosen = [np.flatnonzero(dataset.labels == label)[:per_class] for label in np.unique(dataset.labels)]
        return dataset.select(np.sort(np.concatenate(chosen)))

    source = part_of(pictograms, DRAWINGS)
    splits = {name: thin(getattr(source, name), 2) for name in ("validation", "test")}
    source = replace(source, train=thin(source.train, 8), **splits)
    features, _ = split_features(
        compact.image, [source.train, source.validation, source.test], cache, augmented_views=1
    )
    return DemoSetup(DRAWINGS, source, compact, features)


@contextmanager
def visiting(show):
    with TestClient(server.create_app(show), base_url="http://127.0.0.1:7860") as client:
        assert show.wait(60)
        yield client
    show.wait(60)


@pytest.fixture
def show(stage):
    return Show(lambda subject, progress: stage)


@pytest.fixture(scope="module")
def visitor(stage):
    """Of a demo whose federation nobody starts."""
    show = Show(lambda subject, progress: stage)
    with visiting(show) as client:
        yield client
    assert "run" not in show.view()[1]


def drawing(size=(40, 40), colour="red"):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def classify(visitor, classes, image=None, name="drawing.png"):
    files = {"image": (name, drawing() if image is None else image, "image/png")}
    return visitor.post("/api/classify", data={"classes": classes}, files=files)


# ---------------------------------------------------------------------------------------------------------- federation


def test_two_demos_at_once_show_what_the_library_computes_and_all_prompts_classify(stage, show):
    other = Show(lambda subject, progress: stage)
    with visiting(show) as visitor, visiting(other) as second:
        for one in (visitor, second):
            assert one.post("/api/start", json=CHOICES).status_code == 202
        assert show.wait(120) and other.wait(120)
        found = classify(visitor, "cat, zebra, red panda").json()
    moments = list(federation.rounds(stage, Choices(**CHOICES), threading.Event()))
    for one in (show, other):
        shown = one.view()[1]["run"]["rounds"]
        assert [{**view, "seconds": 0} for view in shown[1:]] == [{**m.view, "seconds": 0} for m in moments[1:]]
    _, view = show.view()
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
        assert "running here already" in second.json()["error"]
        assert trained.wait(60)
        for _ in range(2):  # the second time does nothing
            assert visitor.post("/api/stop").status_code == 202
        assert show.wait(60)
        _, view = show.view()
        assert view["phase"] == "stopped"
        assert 1 <= view["run"]["rounds"][-1]["round"] < 30
        assert len(classify(visitor, "cat, dog").json()["models"]) == 2 + CLIENTS
        assert visitor.post("/api/start", json={"rounds": 1}).json() == {"run": 2}


def test_another_subject_takes_the_place_of_the_first_and_not_during_a_federation(stage):
    asked = []

    def prepare(subject, progress):
        asked.append(subject)
        return replace(stage, subject=subject)

    show = Show(prepare)
    with visiting(show) as visitor:
        assert visitor.post("/api/start", json={"rounds": 30}).status_code == 202
        busy = visitor.post("/api/subject", json="photographs")
        assert (busy.status_code, "stop the federation" in busy.json()["error"]) == (409, True)
        show.stop()
        assert show.wait(60)
        version, before = show.view()
        assert visitor.post("/api/subject", json="photographs").status_code == 202
        assert show.wait(60)
        later, after = show.view()
        assert (before["subject"], after["subject"], after["phase"]) == ("drawings", "photographs", "ready")
        assert "run" in before
        assert "run" not in after
        assert later > version
        assert asked == [DRAWINGS, PHOTOGRAPHS]
        assert [one["model"] for one in classify(visitor, "cat, dog").json()["models"]] == ["zero-shot"]
        assert visitor.get("/api/setting").json()["about"] == PHOTOGRAPHS.about
        assert visitor.post("/api/start", json=CHOICES).json() == {"run": 2}  # whoever watches must see that it is new
        for wrong in ("/etc", ["photographs"], {}):
            refused = visitor.post("/api/subject", json=wrong)
            assert (refused.status_code, "one of drawings, photographs" in refused.json()["error"]) == (422, True)


def test_a_stage_that_cannot_be_prepared_is_told_and_nothing_starts():
    def fails(subject, progress):
        raise CheckpointError("the checkpoint is damaged: install fedpgp again")

    show = Show(fails)
    with TestClient(server.create_app(show), base_url="http://localhost") as visitor:
        assert show.wait(10)
        assert show.view()[1]["error"] == "the checkpoint is damaged: install fedpgp again"
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
    ("given", "words"),
    [
        ({"mu": -1}, "mu must be greater than or equal to 0"),
        ({"mu": "1"}, "mu must be a number"),
        ({"bottleneck": 17}, "bottleneck must be less than or equal to 16"),
        ({"heterogeneity": 9}, "heterogeneity must be less than 5"),
        ({"rounds": 10**9}, "rounds must be less than or equal to 30"),
        ({"data": "/etc"}, "data"),
        (["mu"], "settings must be an object"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(visitor, given, words):
    with pytest.raises(ConfigError, match=words):
        choices_of(given)
    refused = visitor.post("/api/start", json=given)
    assert (refused.status_code, words in refused.json()["error"]) == (422, True)


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
    """A JPEG that is neither square nor upright, with its EXIF note, as a camera writes it."""
    content, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).resize((450, 300)).save(content, "JPEG", exif=exif)
    return content.getvalue()


def test_photographs_have_features_and_no_images_and_are_shared_out(photographs):
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
        setting = visitor.get("/api/setting").json()
        found = classify(visitor, ", ".join(names), turned_photograph()).json()
    assert setting["samples"] == []
    assert setting["about"].endswith(server.NO_IMAGES)
    assert [one["model"] for one in found["models"]] == ["zero-shot"]
    assert dict(found["models"][0]["best"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_prompts_trained_on_photographs_classify_one(photographs):
    show = Show(lambda subject, progress: photographs)
    with visiting(show) as visitor:
        assert visitor.post("/api/start", json={"rounds": 1}).status_code == 202
        assert show.wait(120)
        assert show.view()[1]["phase"] == "finished"
        assert len(classify(visitor, "cat, dog", turned_photograph()).json()["models"]) == 2 + CLIENTS


# ------------------------------------------------------------------------------------------------------ bad class names


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("", "classes must be at least two"),
        (" , ,\n,", "classes must be at least two"),
        ("cat, dog, CAT", "got ['cat', 'CAT']"),
        ("cat, !!!", "got '!!!'"),
        (",".join(f"class {i}" for i in range(10_000)), "at most 100 here, got 10,000"),
        ("x" * 5000, "at most 80 characters, got 5000"),
        ("cat, ﷺ", "class name 'ﷺ'"),
    ],
    ids=["empty", "blanks", "twice", "no-letter", "many", "long", "unknown"],
)
def test_class_names_that_cannot_be_used_are_told(visitor, classes, words):
    refused = classify(visitor, classes)
    assert refused.status_code == 422
    assert words in refused.json()["error"]


@pytest.mark.parametrize("name", [SCRIPT, '"><img src=x onerror=alert(1)>', "{{7*7}}", "a{}b", "Käse 🧀", "a\u202eb"])
def test_markup_and_strange_letters_are_names_like_others(visitor, name):
    answer = classify(visitor, f"{name}\ncat")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.json()["names"] == server.class_names(f"{name}\ncat")
    assert "cat" in answer.json()["names"]


def test_names_are_split_at_commas_and_lines_without_control_characters():
    assert server.class_names("red panda,  cat\r\ndog\tbig\n\nsn\x00ake") == ["red panda", "cat", "dog big", "sn ake"]


def test_the_page_runs_no_script_of_its_text_and_loads_nothing_from_elsewhere(visitor):
    page = visitor.get("/")
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    for path in server.PAGE:
        text = visitor.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path
        assert "https://" not in text, path
        assert "innerHTML" not in text, path
        assert "insertAdjacentHTML" not in text, path
    assert " style=" not in page.text
    assert "onclick" not in page.text


# ---------------------------------------------------------------------------------------------------------- bad uploads


def test_a_files_name_is_never_looked_at(visitor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in PATHS:
        assert classify(visitor, "cat, dog", name=name).status_code in (200, 400)  # 400: no file name at all
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../pyproject.toml",
            "/..%2f..%2fetc/passwd",
            "/static/../server.py",
            "/pictures/train/../0.png",
            "//etc/passwd",
        ),
        *("/pictures/novel/0.png", "/pictures/train/-1.png", "/pictures/train/99999999.png", "/pictures/%2e%2e/1.png"),
    ],
)
def test_paths_lead_nowhere(visitor, path):
    assert visitor.get(path).status_code == 404


def bomb(pixels=40_000):
    """A small PNG that says that it is large."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", pixels, pixels, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no image format that is read"),
        (b"no picture", "no image format that is read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no image format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image format that is read"),
        (drawing()[:60], "cannot be read"),
        (bomb(), "pixels"),
        (bomb(6000), "at most 32,000,000"),
    ],
    ids=["nothing", "text", "svg", "postscript", "cut", "bomb", "large"],
)
def test_what_is_no_picture_is_told(visitor, content, words):
    refused = classify(visitor, "cat, dog", image=content)
    assert refused.status_code == 422
    assert words in refused.json()["error"]


def test_a_picture_must_be_there_and_samples_are_those_of_the_page(visitor, stage):
    assert visitor.post("/api/classify", data={"classes": "cat"}).status_code == 422
    sample = visitor.post("/api/classify", data={"classes": "bee, cat", "sample": str(stage.samples[0])})
    assert sample.json()["models"][0]["best"][0][0] == "bee"
    for wrong in ("999999", "-1", "x", "../1"):
        assert visitor.post("/api/classify", data={"classes": "cat", "sample": wrong}).status_code == 422


def posted(app, path, receive, *headers):
    """The status, the headers and the body with which an app answers a request."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    asyncio.run(app({**scope, "headers": [(b"host", b"127.0.0.1"), *headers]}, receive, send))
    return sent[0]["status"], sent[0]["headers"], sent[1]["body"].decode()


def test_a_large_upload_is_refused_before_a_byte_of_it_is_read():
    async def never(*_):
        raise AssertionError("nothing is to be read")

    length = (b"content-length", str(200 * 2**20).encode())
    status, headers, _ = posted(Guard(never, "127.0.0.1"), "/api/classify", never, length)
    assert status == 413
    assert (b"connection", b"close") in headers


def test_an_upload_without_a_length_is_cut_off(show):
    pieces = iter([b"x" * 2**20] * 9)

    async def receive():
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    kind = (b"content-type", b"application/json")
    status, _, body = posted(server.create_app(show), "/api/start", receive, kind)
    assert (status, "at most 8 MB" in body) == (413, True)
    assert LARGEST == 8 * 2**20


# ------------------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "169.254.169.254", ""])
def test_names_of_others_are_refused(visitor, host):
    assert visitor.get("/", headers={"host": host}).status_code == 403
    assert visitor.post("/api/start", json={}, headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_others_start_nothing(visitor, headers):
    for path in ("/api/subject", "/api/start", "/api/stop", "/api/classify"):
        assert visitor.post(path, headers=headers, json={}).status_code == 403


def test_only_json_starts_a_federation(visitor):
    assert visitor.post("/api/subject", headers={"content-type": "text/plain"}, content="{}").status_code == 415
    assert visitor.post("/api/start", headers={"content-type": "text/plain"}, content="{}").status_code == 415
    assert visitor.post("/api/start", headers={"content-type": "application/json"}, content="{").status_code == 400
    assert visitor.get("/api/start").status_code == 405


@pytest.mark.parametrize(
    ("header", "host", "answers"),
    [
        ("localhost:7860", "127.0.0.1", True),
        ("[::1]:7860", "::1", True),
        ("10.0.0.5:7860", "127.0.0.1", False),
        ("10.0.0.5:7860", "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        (socket.gethostname(), "0.0.0.0", True),
        ("demo.lan:7860", "demo.lan", True),
        ("other.lan", "demo.lan", False),
        ("[::1", "127.0.0.1", False),
    ],
)
def test_to_whom_a_server_answers(header, host, answers):
    assert answers_to(header, host) is answers


# --------------------------------------------------------------------------------------------------------- command line


def test_a_port_in_use_is_told_in_a_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} on 127.0.0.1 cannot be had: .*--port 0"):
            server.listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--host must be a name or address of this machine"):
        server.listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_the_command_says_where_it_is_and_warns_of_other_machines(command, monkeypatch, host, warned):
    served = []
    monkeypatch.setattr(server, "serve", lambda listening, *rest: served.append(rest))
    done = command("demo", "--port", "0", "--host", host)
    assert done.code == 0
    assert f"http://{host}:" in done.out
    assert ("no password" in done.err) is warned
    assert served == [(host, None)]


def test_news_are_told_once(show):
    async def listened():
        news = server._news(show)
        first = await anext(news)
        show.close()
        rest = [one async for one in news]
        return first, rest

    first, rest = asyncio.run(listened())
    assert json.loads(first.removeprefix("data: "))["phase"] == "preparing"
    assert rest == []


def test_novel_classes_are_nobodys(stage):
    for subject in SUBJECTS.values():
        assert len({*subject.base, *subject.novel}) == len(subject.base) + len(subject.novel) == 2 * CLASSES
    held = {name for client in federation.holdings(stage, Choices())["clients"] for name, _ in client["classes"]}
    assert held == set(BASE)
    with pytest.raises(DataError):
        server.picture_of(b"")
    with pytest.raises(BusyError):
        Show(lambda subject, progress: stage).start(Choices())
