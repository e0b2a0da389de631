"""What the demo's server refuses: class names, uploads, and requests of other sites."""

import asyncio
import socket
import struct
import zlib

import pytest
from demo_visits import classify, drawing
from raising import raises

from fedpgp.demo import server, uploads
from fedpgp.demo.guard import LARGEST, Guard, answers_to
from fedpgp.errors import ConfigError

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


# ------------------------------------------------------------------------------------------------------ bad class names


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("", "classes"),
        (" , ,\n,", "classes"),
        ("cat, dog, CAT", "CAT"),
        ("cat, !!!", "!!!"),
        (",".join(f"class {i}" for i in range(10_000)), "at most 100, got 10000"),
        ("x" * 5000, "at most 80 characters, got 5000"),
        ("cat, ﷺ", "ﷺ"),
    ],
    ids=["empty", "blanks", "twice", "no-letter", "many", "long", "unknown"],
)
def test_class_names_that_cannot_be_used_are_reported(visitor, classes, words):
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
    assert answer.json()["names"] == uploads.class_names(f"{name}\ncat")
    assert "cat" in answer.json()["names"]


def test_names_are_split_at_commas_and_lines_without_control_characters():
    assert uploads.class_names("red panda,  cat\r\ndog\tbig\n\nsn\x00ake") == ["red panda", "cat", "dog big", "sn ake"]


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


def test_the_name_of_a_file_is_ignored(visitor, tmp_path, monkeypatch):
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
def test_paths_of_files_are_not_served(visitor, path):
    assert visitor.get(path).status_code == 404


def bomb(pixels=40_000):
    """Return a small PNG file with a large width and height in its header."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", pixels, pixels, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no supported image format"),
        (b"no picture", "no supported image format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no supported image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no supported image format"),
        (drawing()[:60], "cannot be read"),
        (bomb(), "pixels"),
        (bomb(6000), "at most 32000000"),
    ],
    ids=["nothing", "text", "svg", "postscript", "cut", "bomb", "large"],
)
def test_a_file_that_is_not_a_picture_is_reported(visitor, content, words):
    refused = classify(visitor, "cat, dog", image=content)
    assert refused.status_code == 422
    assert words in refused.json()["error"]


def test_a_picture_is_required_and_only_the_pages_samples_are_accepted(visitor, stage):
    assert visitor.post("/api/classify", data={"classes": "cat"}).status_code == 422
    sample = visitor.post("/api/classify", data={"classes": "bee, cat", "sample": str(stage.samples[0])})
    assert sample.json()["models"][0]["best"][0][0] == "bee"
    for wrong in ("999999", "-1", "x", "../1"):
        assert visitor.post("/api/classify", data={"classes": "cat", "sample": wrong}).status_code == 422


def posted(app, path, receive, *headers):
    """Send a request to an app, and return the status, the headers and the body of its answer."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    asyncio.run(app({**scope, "headers": [(b"host", b"127.0.0.1"), *headers]}, receive, send))
    return sent[0]["status"], sent[0]["headers"], sent[1]["body"].decode()


def test_a_large_upload_is_refused_before_a_byte_of_it_is_read():
    async def never(*_):
        raise AssertionError("nothing may be read")

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
    assert (status, "8 MB" in body) == (413, True)
    assert LARGEST == 8 * 2**20


# ------------------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "169.254.169.254", ""])
def test_other_host_names_are_refused(visitor, host):
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
def test_pages_of_other_sites_start_nothing(visitor, headers):
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
def test_accepted_host_headers(header, host, answers):
    assert answers_to(header, host) is answers


# --------------------------------------------------------------------------------------------------------- command line


def test_a_port_in_use_is_reported():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with raises(ConfigError, where=f"--port {port}", problem="127.0.0.1", remedy="--port 0"):
            server.listen("127.0.0.1", port)
    server.listen("127.0.0.1", 0).close()
    with raises(ConfigError, where="--host", got="no.such.host.invalid"):
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
