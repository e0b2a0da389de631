"""Uploads to a local server that answers like the hub."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from commands import Command, refused
from raising import raises

import fedpgp
from fedpgp.errors import OutputError
from fedpgp.serving import hub
from fedpgp.serving.export import export

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # by httpx

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Local server that answers like the hub.

    repositories: name -> path -> content; private: name -> whether it is private; tokens: name -> permissions.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.large: dict[str, bytes] = {}
        self.commits = 0
        self.fails: dict[str, int] = {}  # part of a path -> status code

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: object, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return content

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.body()
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        for part, status in self.server.fails.items():
            if part in path:
                return self.answer(status, {"error": "not today"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        content = json.loads(body) if body[:1] == b"{" and b"\n" not in body.strip() else {}
        if path == "/api/repos/create":
            name = f"{content['organization']}/{content['name']}" if content.get("organization") else content["name"]
            if not name.startswith("me/"):
                return self.answer(403, {"error": "You don't have the rights to create a model there"})
            url = {"url": f"{self.server.address}/{name}"}
            if name in self.server.repositories:
                return self.answer(409, {**url, "error": "You already created this model repo"})
            self.server.repositories[name] = {}
            self.server.private[name] = bool(content.get("private")) or content.get("visibility") == "private"
            return self.answer(200, url)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").removeprefix("/").removesuffix(".git").split("/")[:2])
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [
                        {**one, "actions": {"upload": {"href": f"{self.server.address}/large/{one['oid']}"}}}
                        for one in content["objects"]
                    ],
                },
                Content_Type="application/vnd.git-lfs+json",
            )
        if "/preupload/" in path:
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in content["files"]
            ]
            return self.answer(200, {"files": modes})
        if "/commit/" in path:
            files = self.server.repositories[name]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    assert value["encoding"] == "base64"
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            self.server.commits += 1
            commit = {"commitUrl": f"{self.server.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
            return self.answer(200, commit)
        if self.command == "GET" and name in self.server.repositories:
            about = {"id": name, "private": self.server.private[name], "sha": "0" * 40, "siblings": []}
            return self.answer(200, about)
        return self.answer(404, {"error": f"Repository not found: {path}"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the storage is on another server
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with Hub() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def exported(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export; tests that change it must copy it."""
    return export(fedpgp.load_run(compared / "fedpgp/seed-0"), tmp_path_factory.mktemp("hub") / "model")


def contents(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(directory).as_posix(): digest(path.read_bytes()) for path in files}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_export_goes_up_whole_in_one_commit_and_private(server: Hub, exported: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(exported, tmp_path / "own"))
    (own / ".DS_Store").write_bytes(b"of a Mac")
    url = hub.upload(own, "me/zebras", endpoint=server.address, token=TOKEN)
    assert url == f"{server.address}/me/zebras"
    there = {path: digest(content) for path, content in server.repositories["me/zebras"].items()}
    assert there == contents(exported)
    assert {"README.md", "prompt.safetensors", "model.safetensors"} <= there.keys()
    assert (server.private["me/zebras"], server.commits) == (True, 1)


def test_a_second_upload_goes_into_the_same_repository(server: Hub, exported: Path) -> None:
    for _ in range(2):
        hub.upload(exported, "me/zebras", endpoint=server.address + "/", token=TOKEN, private=False)
    assert (server.private["me/zebras"], server.commits) == (False, 2)
    before = len(server.asked)
    with raises(OutputError, where=server.address, problem="me/zebras already exists", remedy="--public"):
        hub.upload(exported, "me/zebras", endpoint=server.address, token=TOKEN)
    assert not any("upload" in asked or "commit" in asked for asked in server.asked[before:])


def test_nothing_but_an_export_goes_up(server: Hub, exported: Path, compared: Path, tmp_path: Path) -> None:
    for directory in (compared / "fedpgp/seed-0", tmp_path / "none"):
        with raises(OutputError, where=str(directory), allowed="a directory that fedpgp export wrote"):
            hub.upload(directory, "me/zebras", endpoint=server.address, token=TOKEN)
    own = Path(shutil.copytree(exported, tmp_path / "own"))
    (own / "clients").mkdir()
    for name in ("state.sqlite", "prompts.safetensors", "clients/config.json"):
        (own / name).write_bytes(b"private")
        with raises(OutputError, where=str(own), problem=f"but contains {name}"):
            hub.upload(own, "me/zebras", endpoint=server.address, token=TOKEN)
        (own / name).unlink()
    (own / "classes.json").symlink_to(compared / "fedpgp/seed-0/results.json")
    with raises(OutputError, where=str(own), problem="but contains classes.json"):
        hub.upload(own, "me/zebras", endpoint=server.address, token=TOKEN)
    assert server.asked == []


@pytest.mark.parametrize(
    ("repo_id", "token", "fields"),
    [
        ("me/zebras", None, {"where": "http://127.0.0.1:", "remedy": "token="}),
        ("me/zebras", "hf_wrong", {"problem": "me/zebras (Invalid username", "remedy": "a token that is valid"}),
        ("you/zebras", TOKEN, {"problem": "you/zebras (You don't have the rights", "remedy": "a token with write"}),
        ("zebras", TOKEN, {"where": "repo_id", "allowed": "OWNER/NAME", "got": "zebras"}),
        ("me/zeb ras", TOKEN, {"where": "repo_id", "allowed": "OWNER/NAME", "got": "me/zeb ras"}),
    ],
)
def test_a_refusal_says_why(
    repo_id: str, token: str | None, fields: dict[str, str], server: Hub, exported: Path
) -> None:
    with raises(OutputError, **fields):
        hub.upload(exported, repo_id, endpoint=server.address, token=token)
    assert server.commits == 0


def test_the_hubs_token_is_sent_only_to_the_hub(server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    with raises(OutputError, where=server.address, problem="a token with write access"):
        hub.upload(exported, "me/zebras", endpoint=server.address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    assert hub.upload(exported, "me/zebras") == f"{server.address}/me/zebras"


def test_a_server_that_fails_or_cannot_be_reached_is_reported(server: Hub, exported: Path) -> None:
    server.fails = {"/commit/": 400}
    with raises(OutputError, where=server.address, problem="me/zebras (not today)", remedy="Try again later"):
        hub.upload(exported, "me/zebras", endpoint=server.address, token=TOKEN)
    with raises(OutputError, where="http://127.0.0.1:9", remedy="Try again later"):
        hub.upload(exported, "me/zebras", endpoint="http://127.0.0.1:9", token=TOKEN)


def test_the_command_line_exports_and_uploads(
    server: Hub, compared: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    run = str(compared / "fedpgp/seed-0")
    ended = command("export", run, "-o", "prompts", "--upload", "me/prompts")
    uploaded = server.repositories["me/prompts"]
    assert {path: digest(content) for path, content in uploaded.items()} == contents(Path("prompts"))
    assert server.private["me/prompts"] is True
    assert f"uploaded to {server.address}/me/prompts" in ended.err
    refused(command("export", run, "--public"), "--public", "--upload OWNER/NAME")
