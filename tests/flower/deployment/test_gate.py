"""The requests that the gate admits and refuses, in front of a stub of a SuperLink."""

import contextlib
import os
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore import constant
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from gates import ROUTE, Setup, answer, head, running, signed
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.flower.deployment import gate
from fedpgp.flower.deployment.credentials import public_key_pem, write_node_key
from fedpgp.flower.deployment.gate import Keys, Limits, raise_file_limit

SHORT = Limits(request=1.0)  # seconds
FEW = Limits(per_address=8, unsigned=16, per_key=4)  # connections


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gate")) as made:
        yield made


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    with running(tmp_path_factory.mktemp("hurried"), SHORT) as made:
        yield made


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    with running(tmp_path_factory.mktemp("crowded"), FEW) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_yet(request):
    for name in ("setup", "hurried", "crowded"):
        if name in request.fixturenames:
            request.getfixturevalue(name).received.clear()


def test_names_and_times_are_flowers():
    """The gate uses no other internals of Flower."""
    assert gate.KEY.decode() == constant.FLEET_HTTP_PUBLIC_KEY_HEADER
    assert gate.SIGNATURE.decode() == constant.FLEET_HTTP_SIGNATURE_HEADER
    assert gate.TIMESTAMP.decode() == TIMESTAMP_HEADER
    assert [name.decode() for name in gate.VERSION] == [
        constant.FLWR_PACKAGE_NAME_METADATA_KEY,
        constant.FLWR_PACKAGE_VERSION_METADATA_KEY,
        constant.FLWR_COMPONENT_NAME_METADATA_KEY,
    ]
    assert constant.VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY.encode() in gate.RETURNED
    assert (gate.OLDEST, gate.AHEAD) == (TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE, SYSTEM_TIME_TOLERANCE)
    _, public = generate_key_pairs()
    assert public_key_pem(public) == public_key_to_bytes(public)


def test_the_ten_routes_are_forwarded_with_their_body_and_the_headers_that_a_superlink_reads(setup):
    for route in gate.ROUTES:
        assert setup.ask(route.decode(), b"some bytes", x_forwarded_for="10.0.0.1", flwr_task_token="x") == 200
    assert {one.target for one in setup.received} == gate.ROUTES
    assert len(gate.ROUTES) == 10
    for one in setup.received:
        names = {name for name, _ in one.headers}
        assert one.body == b"some bytes"
        assert {gate.KEY, gate.SIGNATURE, gate.TIMESTAMP, b"content-type"} <= names
        assert not names & {b"x-forwarded-for", b"flwr-task-token"}


def test_an_answer_comes_back_without_the_headers_of_the_superlink(setup):
    with setup.connect() as connection:
        for _ in range(3):  # on one connection
            connection.sendall(head(ROUTE, setup.headers(content_length="0")))
            status, content = answer(connection)
            assert status == 200
            assert content.endswith(b"\r\n\r\npong")
            assert b"stub" not in content
    assert len(setup.received) == 3


OTHERS = (
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/docs",
    "/openapi.json",
    "/",
)
TRICKS = (
    ROUTE + "/",
    ROUTE + "?a=b",
    ROUTE + "%3f",
    ROUTE + "#",
    ROUTE + ";a",
    "/" + ROUTE,
    "/v1/./fleet/pull-messages",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet//pull-messages",
    "/V1/FLEET/PULL-MESSAGES",
    "/v1/fleet/pull%2dmessages",
    "/v1%2ffleet%2fpull-messages",
    "https://127.0.0.1" + ROUTE,
    "*",
    "\\v1\\fleet\\pull-messages",
)


@pytest.mark.parametrize("route", [*OTHERS, *TRICKS])
def test_no_other_route_is_forwarded_even_with_a_signature(setup, route):
    assert setup.ask(route) == 404
    assert setup.received == []


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "post", "TRACE"])
def test_no_other_method_is_forwarded(setup, method):
    assert setup.ask(method=method) == 404
    assert setup.received == []


def test_a_websocket_is_refused(setup):
    handshake = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13"}
    handshake |= {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert setup.status(head("/v1/fleet/pull-messages", setup.headers() | handshake, "GET")) == 404
    assert setup.received == []


@pytest.mark.parametrize(
    "changes",
    [
        {"flwr_signature": None},
        {"flwr_public_key": None},
        {"flwr_timestamp": None},
        {"flwr_signature": ""},
        {"flwr_signature": "no base64!"},
        {"flwr_signature": "AAAA"},
        {"flwr_public_key": "AAAA"},
        {"flwr_timestamp": "yesterday"},
        {"flwr_timestamp": "2020-01-01T00:00:00"},
        {"flwr_timestamp": "2020-01-01T00:00:00+00:00"},
        {"age": 306.0},
        {"age": -6.0},
        {"age": 1e9},
    ],
    ids=str,
)
def test_a_request_without_a_valid_signature_is_refused(setup, changes):
    assert setup.ask(**changes) == 401
    assert setup.received == []


def test_whoever_has_seen_a_header_can_use_it_for_305_seconds_on_any_route(setup):
    """The threat model says so: Flower signs neither the route nor the body."""
    seen = setup.headers(age=300.0) | {"content-length": "4"}
    for route, body in ((ROUTE, b"ping"), ("/v1/fleet/push-messages", b"evil")):
        assert setup.status(head(route, seen), body) == 200


def test_a_signature_of_another_key_or_of_another_time_is_refused(setup, tmp_path):
    write_node_key(tmp_path / "key", tmp_path / "key.pub")
    stranger, known = signed(tmp_path / "key"), setup.headers(age=1.0)
    mixed = ({**known, "flwr-signature": stranger["flwr-signature"]}, {**setup.headers(), **stranger})
    later = {**known, "flwr-timestamp": setup.headers()["flwr-timestamp"]}
    for headers in (*mixed, later, {**known, "flwr-public-key": setup.headers(1)["flwr-public-key"]}):
        assert setup.status(head(ROUTE, headers | {"content-length": "0"})) == 401
    assert setup.received == []


def test_repeated_headers_are_refused(setup):
    """The gate and the SuperLink could use different ones."""
    once = head(ROUTE, setup.headers(content_length="0"))
    line = f"flwr-public-key: {setup.headers(1)['flwr-public-key']}\r\n".encode()
    assert setup.status(once[:-2] + line + b"\r\n") == 401
    assert setup.received == []


def test_a_body_without_a_plain_length_or_too_large_is_refused(setup):
    for changes in (
        {"content_length": None, "transfer_encoding": "chunked"},
        {"transfer_encoding": "chunked"},
        {"content_length": None},
        {"content_length": str((64 << 20) + 1)},
    ):
        assert setup.ask(**changes) == 413
    assert setup.ask(flwr_signature=None, transfer_encoding="chunked") == 401
    assert setup.received == []


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x00\x00",
        b"GET\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\n\r\n",  # without a host
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * (40 << 10),
    ],
    ids=range(7),
)
def test_an_invalid_request_ends_the_connection(setup, text):
    assert setup.status(text) in (0, 404)
    assert setup.received == []


def test_a_second_request_in_one_segment_is_checked_separately(setup):
    """A body is part of one request, whatever its bytes are. The next request needs its own signature."""
    hidden = head("/v1/control/start-run", {"content-length": "0"})
    with setup.connect() as connection:
        connection.sendall(head(ROUTE, setup.headers(content_length="4")) + b"ping" + hidden)
        content = b""
        while data := connection.recv(65536):
            content += data
    assert content.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 404" in content
    assert [one.body for one in setup.received] == [b"ping"]


def test_an_unsigned_body_is_not_read(setup):
    """A client tries to send 100 MB, and can send only what fits into the buffers on the way."""
    before = memory()
    with setup.connect() as connection:
        sent = 0
        with contextlib.suppress(OSError):
            connection.sendall(head(ROUTE, {"content-length": str(100 << 20)}))
            for _ in range(1600):
                connection.sendall(bytes(1 << 16))
                sent += 1 << 16
        assert answer(connection)[0] in (0, 401)  # 0: the reset of the connection came first
    assert sent < 16 << 20
    assert memory() - before < 16 << 20


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_revoked_key_stops_within_a_second_also_on_an_open_connection(tmp_path, monkeypatch):
    assert Keys.LOOK <= 1.0
    monkeypatch.setattr(Keys, "LOOK", 0.0)
    with running(tmp_path) as setup, setup.connect() as connection:
        request = head(ROUTE, setup.headers(content_length="0"))
        connection.sendall(request)
        assert answer(connection)[0] == 200
        (tmp_path / "node-0.pub").rename(tmp_path / "node-0.revoked")
        connection.sendall(request)
        assert answer(connection)[0] == 401
        assert setup.ask(node=1) == 200
        (tmp_path / "node-0.revoked").rename(tmp_path / "node-0.pub")
        assert setup.ask() == 200


def test_a_file_that_is_not_a_key_has_no_effect(tmp_path, caplog):
    (tmp_path / "torn.pub").write_text("ecdsa-sha2-nistp384 AAAA")
    with running(tmp_path) as setup:
        assert setup.ask() == 200
    assert "torn.pub" in caplog.text


def test_without_a_superlink_a_node_is_told_to_try_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with running(tmp_path, upstream=address) as setup:
        assert setup.ask() == 503


def test_an_incomplete_answer_of_the_superlink_makes_a_node_try_again(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))
    with running(tmp_path, upstream=f"127.0.0.1:{listener.getsockname()[1]}") as setup:
        secure = gate.server_context(tmp_path / "server.crt", tmp_path / "server.key")

        def break_off() -> None:
            with listener, secure.wrap_socket(listener.accept()[0], server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")

        thread = threading.Thread(target=break_off)
        thread.start()
        assert setup.ask() == 503
        thread.join()


def test_a_connection_to_the_superlink_is_used_again_while_it_is_fresh(tmp_path, monkeypatch):
    with running(tmp_path) as setup:
        assert [setup.ask() for _ in range(3)] == [200] * 3
        ((_, _, kept),) = setup.gate._upstream._free
        monkeypatch.setattr(gate.Upstream, "FRESH", 0.0)
        assert setup.ask() == 200
        ((_, _, other),) = setup.gate._upstream._free
        assert other is not kept


def closed(connection: socket.socket, seconds: float = 5.0) -> bool:
    """Return whether the other side ends a connection within some seconds."""
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
    return True


def test_a_request_that_is_not_complete_in_time_ends_the_connection(hurried):
    """Requests stop before the handshake, in the head or in a signed body. Single bytes do not extend the time."""
    bare = socket.create_connection(("127.0.0.1", hurried.port))
    connections = [bare]
    for text in (b"", b"POST /v1", head(ROUTE, hurried.headers(content_length="100")) + b"some"):
        connection = hurried.connect()
        connection.sendall(text)
        connections.append(connection)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 3 * SHORT.request:
            connections[2].sendall(b"a")
            time.sleep(0.1)
    assert time.monotonic() - began < 2 * SHORT.request
    for connection in connections:
        assert closed(connection)
        connection.close()
    assert hurried.received == []


def test_a_body_over_the_limit_of_all_bodies_is_postponed(tmp_path):
    with running(tmp_path, Limits(bodies=1 << 20)) as setup:
        assert setup.ask(body=bytes(1 << 19)) == 200
        assert setup.ask(body=bytes(1 << 21)) == 503
        assert setup.ask(body=bytes(1 << 19)) == 200  # the postponed body uses no memory


def test_half_requests_keep_no_node_out(crowded: Setup):
    """If there are far more connections than places, the oldest end, and a node of the same address is admitted."""
    opened = []
    for number in range(10 * FEW.unsigned):
        if number % 2:
            opened.append(socket.create_connection(("127.0.0.1", crowded.port)))
        else:
            with contextlib.suppress(OSError):
                opened.append(crowded.connect())
                opened[-1].sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: a\r\n")
        if number % FEW.unsigned == 0:
            assert crowded.ask() == 200
    assert sum(not closed(one, 0.001) for one in opened) <= FEW.per_address
    for one in opened:
        one.close()


def test_a_signed_connection_has_a_place_that_unsigned_ones_cannot_take(crowded: Setup):
    with crowded.connect() as connection:
        for _ in range(3):
            connection.sendall(head(ROUTE, crowded.headers(content_length="0")))
            assert answer(connection)[0] == 200
            others = [socket.create_connection(("127.0.0.1", crowded.port)) for _ in range(3 * FEW.unsigned)]
            for one in others:
                one.close()


def test_a_key_has_few_connections(crowded: Setup):
    """A stolen header of a node cannot be used to fill the gate."""
    opened = []
    for _ in range(2 * FEW.per_key):
        opened.append(crowded.connect())
        opened[-1].sendall(head(ROUTE, crowded.headers(content_length="0")))
        assert answer(opened[-1])[0] == 200
    assert all(closed(one) for one in opened[: FEW.per_key])
    assert crowded.ask(node=1) == 200
    for one in opened:
        one.close()


def test_the_log_has_the_reason_of_a_refusal_at_most_once_a_minute(tmp_path, caplog):
    with running(tmp_path) as setup:
        assert setup.ask(age=400.0) == 401
        for _ in range(3):
            assert setup.ask(flwr_signature=None) == 401
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert all(text in line for text in ("127.0.0.1", "401", "400 s", "clocks"))


def test_the_file_limit_is_raised_up_to_the_systems_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        raise_file_limit(Limits().files(keys=10))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (Limits().files(keys=10), hard)
        raise_file_limit(100)  # never lowered
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (Limits().files(keys=10), hard)
        if hard != resource.RLIM_INFINITY:
            with raises(ConfigError, where="open files", allowed=str(hard + 1), got=hard):
                raise_file_limit(hard + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
