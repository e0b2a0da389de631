"""The gate of a federation: the only part of its server that other machines can reach.

Flower's SuperLink lets every process that reaches its port submit runs and register nodes, and it reads a whole body
before it looks for a key. So the SuperLink listens on the loopback address, and the gate listens on the public port.
The gate forwards the ten requests that a node makes, if a key of the federation signed them. It refuses all others.

The gate counts a connection, and starts its deadline, as soon as it accepts the connection. A web server such as
uvicorn does both only after the TLS handshake. docs/deploy.md describes the threat model: Flower signs only the time of
a request.
"""

import asyncio
import base64
import contextlib
import datetime
import logging
import resource
import socket
import ssl
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment.credentials import public_key_pem, read_public_key
from fedpgp.flower.deployment.layout import host_and_port

ROUTES = frozenset(
    f"/v1/fleet/{name}".encode()
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
KEY, SIGNATURE, TIMESTAMP = b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"
VERSION = (b"flwr-package-name", b"flwr-package-version", b"flwr-component-name")
FORWARDED = frozenset([KEY, SIGNATURE, TIMESTAMP, *VERSION, b"content-type", b"accept"])  # headers of a request
RETURNED = frozenset([b"content-type", b"flwr-version-incompatibility-message"])  # headers of an answer
OLDEST, AHEAD = 305.0, 5.0  # seconds that a timestamp may be before or after this clock, as in Flower
CHUNK = 64 << 10  # bytes
SECONDS_BETWEEN_WARNINGS = 60.0

log = logging.getLogger("fedpgp")


@dataclass(frozen=True)
class Limits:
    """Limits of the gate: sizes in bytes, times in seconds, numbers of connections.

    Attributes
    ----------
    head
        Size of the first line and the headers of a request.
    body
        Size of the body of a request. Flower sends arrays in parts of 5 MiB.
    bodies
        Size of the bodies of all requests that the gate is reading.
    request
        Time until a request is complete, from its first byte; for the first request of a connection, from the TCP
        handshake.
    idle
        Time between two requests.
    answer
        Time until the SuperLink's answer has been sent.
    per_address
        Connections without a signed request from one address.
    unsigned
        Connections without a signed request in total.
    per_key
        Connections with a request that one key signed.
    upstream
        Connections to the SuperLink.
    """

    head: int = 16 << 10
    body: int = 64 << 20
    bodies: int = 512 << 20
    request: float = 10.0
    idle: float = 30.0
    answer: float = 120.0
    per_address: int = 64
    unsigned: int = 512
    per_key: int = 16
    upstream: int = 100

    def files(self, keys: int) -> int:
        """Return the largest number of open files for this many keys, including 128 for the rest of the process."""
        return self.unsigned + self.per_key * keys + self.upstream + 128


class RefusedError(Exception):
    """A request that the gate does not forward.

    Attributes
    ----------
    status
        HTTP status of the answer.
    reason
        The reason, for the log of the gate.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Keys:
    """The public keys `*.pub` of a directory. Added and removed files take effect within `LOOK` seconds.

    Parameters
    ----------
    directory
        The directory.
    own
        Key of the server itself, with which it checks that the gate and the SuperLink answer.
    """

    LOOK = 1.0

    def __init__(self, directory: Path, own: ec.EllipticCurvePublicKey | None = None):
        self._directory = directory
        self._own = {} if own is None else {public_key_pem(own): own}
        self._files: dict[Path, tuple[int, int, int]] | None = None
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}
        self._looked = -self.LOOK
        self._read()

    def __len__(self) -> int:
        return len(self._keys)

    def signer(self, headers: dict[bytes, bytes]) -> bytes:
        """Return the public key, as PEM, that signed a request's timestamp.

        Raises
        ------
        RefusedError
            If the key is not in the federation, the signature is wrong, or the timestamp is too old.
        """
        self._read()
        try:
            timestamp = headers[TIMESTAMP].decode("ascii")
            signed = datetime.datetime.fromisoformat(timestamp)
            name, signature = (base64.b64decode(headers[header], validate=True) for header in (KEY, SIGNATURE))
            age = (datetime.datetime.now(datetime.UTC) - signed).total_seconds()
        except (KeyError, ValueError, TypeError, OverflowError):
            raise RefusedError(401, "the request is not signed") from None
        if name not in self._keys:
            raise RefusedError(401, "the key that signed the request is not in the server's directory")
        if not -AHEAD < age < OLDEST:
            raise RefusedError(401, f"the timestamp is {age:.0f} s old. Set the clocks if the request is from a node")
        try:
            self._keys[name].verify(signature, timestamp.encode(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise RefusedError(401, "the signature is wrong") from None
        return name

    def _read(self) -> None:
        """Read the keys again if a file has changed. A file that is not a key has no effect."""
        if time.monotonic() - self._looked < self.LOOK:
            return
        self._looked = time.monotonic()
        files = key_files(self._directory)
        if files == self._files:
            return
        self._files, self._keys = files, dict(self._own)
        for file in files:
            try:
                key = read_public_key(file)
            except OutputError as error:
                log.warning("%s", error)
                continue
            self._keys[public_key_pem(key)] = key


def key_files(directory: Path) -> dict[Path, tuple[int, int, int]]:
    """Return the public keys `*.pub` of a directory in order, each with values that differ when the file changes."""
    files = {}
    for file in sorted(directory.glob("*.pub")):
        with contextlib.suppress(OSError):  # the file has just been removed
            stat = file.stat()
            files[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return files


class Newest:
    """Tasks of connections, at most `limit` for each name. One task more cancels the oldest one.

    Later connections therefore replace connections that stay open without a signed request. A node is admitted as soon
    as it sends a signed request, so incomplete requests of others cannot keep it out.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._tasks: dict[Hashable, dict[asyncio.Task[None], None]] = {}

    def add(self, name: Hashable, task: asyncio.Task[None]) -> None:
        """Add a task, and cancel the oldest task of this name if there are too many."""
        tasks = self._tasks.setdefault(name, {})
        tasks[task] = None
        if len(tasks) > self._limit:
            oldest = next(iter(tasks))
            del tasks[oldest]
            oldest.cancel()

    def discard(self, task: asyncio.Task[None], name: Hashable) -> None:
        """Remove a task if it is there."""
        tasks = self._tasks.get(name, {})
        tasks.pop(task, None)
        if not tasks:
            self._tasks.pop(name, None)


class Counted:
    """The pools of the gate in which a connection counts: the unsigned ones until a key has signed a request."""

    def __init__(self, gate: "Gate", address: str, task: asyncio.Task[None]):
        self._gate, self._task = gate, task
        self._places: list[tuple[Newest, Hashable]] = []
        self._take((gate.unsigned_of_address, address), (gate.unsigned, None))

    def sign(self, key: bytes) -> None:
        """Count the connection for the key that signed its request."""
        if (self._gate.signed, key) not in self._places:
            self._take((self._gate.signed, key))

    def leave(self) -> None:
        """Leave all pools."""
        self._take()

    def _take(self, *places: tuple[Newest, Hashable]) -> None:
        for pool, name in self._places:
            pool.discard(self._task, name)
        self._places = list(places)
        for pool, name in places:
            pool.add(name, self._task)


class Answer(NamedTuple):
    """An answer to a node; `close` tells whether the connection ends with it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    close: bool


class Upstream:
    """A limited number of connections to the SuperLink. A connection is used again while it is fresh.

    An HTTP client such as httpx needs twice the time, and the gate spends most of its time per request here.
    """

    FRESH = 2.0  # seconds without a request; the SuperLink closes a connection after 5 s

    def __init__(self, address: str, authority: Path, connections: int):
        self._address = address
        self._secure = ssl.create_default_context(cafile=str(authority))
        self._places = asyncio.Semaphore(connections)
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []  # the oldest first

    async def post(self, route: bytes, headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        """Return the SuperLink's answer; raise OSError or h11.RemoteProtocolError if it does not answer."""
        async with self._places:
            reader, writer = await self._connected()
            try:
                http = h11.Connection(h11.CLIENT)
                fields = [(b"host", self._address.encode()), *headers.items(), (b"content-length", b"%d" % len(body))]
                request = h11.Request(method="POST", target=route, headers=fields)
                writer.write(_encoded(http, request, body))
                await writer.drain()
                head = await _event(http, reader)
                if not isinstance(head, h11.Response):
                    raise ConnectionError("the SuperLink has closed the connection")
                content = bytearray()
                while isinstance(event := await _event(http, reader), h11.Data):
                    content += event.data
            except BaseException:
                writer.transport.abort()
                raise
            if http.our_state is http.their_state is h11.DONE:
                self._free.append((time.monotonic(), reader, writer))
            else:
                writer.close()
            returned = [(name, value) for name, value in head.headers if name in RETURNED]
            return Answer(head.status_code, returned, bytes(content), close=False)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free and time.monotonic() - self._free[0][0] > self.FRESH:
            self._free.pop(0)[2].close()
        while self._free:
            _, reader, writer = self._free.pop()
            if not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        host, port = host_and_port(self._address)
        return await asyncio.open_connection(host, port, ssl=self._secure, limit=CHUNK)

    def close(self) -> None:
        """Close all free connections."""
        for _, _, writer in self._free:
            writer.transport.abort()


class Gate:
    """Forwards the signed requests of nodes to a SuperLink.

    Parameters
    ----------
    upstream
        Address of the SuperLink, host:port.
    authority
        Certificate of the authority that signed the SuperLink's certificate.
    keys
        Keys of the nodes.
    limits
        Limits of sizes, times and connections.
    """

    def __init__(self, upstream: str, authority: Path, keys: Keys, limits: Limits = Limits()):
        self.keys, self.limits = keys, limits
        self.unsigned_of_address, self.unsigned = Newest(limits.per_address), Newest(limits.unsigned)
        self.signed = Newest(limits.per_key)
        self._bodies = 0  # bytes of bodies that are in memory
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused, self._warned = 0, -SECONDS_BETWEEN_WARNINGS
        self._upstream = Upstream(upstream, authority, limits.upstream)

    async def serve(self, listener: socket.socket, secure: ssl.SSLContext) -> None:
        """Accept connections until this task is cancelled.

        Parameters
        ----------
        listener
            Socket that listens.
        secure
            TLS context with the server's certificate.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        try:
            while True:
                try:
                    connection, (address, *_) = await loop.sock_accept(listener)
                except OSError as error:  # for example no free file, or a peer that has left
                    log.warning("the gate cannot accept a connection: %s", error)
                    await asyncio.sleep(0.1)
                    continue
                task = loop.create_task(self._serve(connection, address, secure))
                self._tasks.add(task)  # the loop itself keeps no reference to it
                task.add_done_callback(self._tasks.discard)
        finally:
            self._upstream.close()

    async def _serve(self, connection: socket.socket, address: str, secure: ssl.SSLContext) -> None:
        """Answer the requests of one connection, one after the other."""
        task = asyncio.current_task()
        assert task is not None
        counted, transport = Counted(self, address, task), None
        reader = asyncio.StreamReader(CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.request) as deadline:
                await _readable(connection)  # before the 0.3 MB for TLS are allocated
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=secure, ssl_shutdown_timeout=1.0
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                http = h11.Connection(h11.SERVER, self.limits.head)
                while True:
                    answer = await self._answer(http, reader, counted, address, deadline)
                    if answer is None:
                        break
                    writer.write(_answered(http, answer))
                    await writer.drain()
                    if http.our_state is not h11.DONE:
                        break
                    http.start_next_cycle()
                    deadline.reschedule(loop.time() + self.limits.idle)
                    if not http.trailing_data[0]:
                        http.receive_data(await reader.read(CHUNK))
                    deadline.reschedule(loop.time() + self.limits.request)
                deadline.reschedule(loop.time() + self.limits.request)
                writer.close()
                await writer.wait_closed()
        except (OSError, h11.RemoteProtocolError):  # the peer left, was too late, or does not use TLS or HTTP
            pass
        except asyncio.CancelledError:  # a task that keeps this exception keeps this whole frame in memory for a while
            pass
        except Exception:
            log.exception("the gate closes a connection from %s after an unexpected error", address)
        finally:
            counted.leave()
            if transport is None:
                connection.close()
            else:
                transport.abort()

    async def _answer(
        self,
        http: h11.Connection,
        reader: asyncio.StreamReader,
        counted: Counted,
        address: str,
        deadline: asyncio.Timeout,
    ) -> Answer | None:
        """Return the answer to the next request, or None at the end of the connection."""
        request = await _event(http, reader)
        if not isinstance(request, h11.Request):
            return None
        try:
            signer, headers = self._checked(request)
            counted.sign(signer)
            body = bytearray()
            try:
                while isinstance(event := await _event(http, reader), h11.Data):
                    body += event.data
                    self._bodies += len(event.data)
                    if self._bodies > self.limits.bodies:
                        raise RefusedError(503, "the bodies of all requests together are too large")
                deadline.reschedule(asyncio.get_running_loop().time() + self.limits.answer)
                return await self._forwarded(request.target, headers, bytes(body))
            finally:
                self._bodies -= len(body)
        except RefusedError as refusal:
            self._warn(address, refusal)
            return Answer(refusal.status, [], b"", close=True)  # no body, because an answer to HEAD must not have one

    def _checked(self, request: h11.Request) -> tuple[bytes, dict[bytes, bytes]]:
        """Return the key that signed a request, and the headers to forward; raise RefusedError if it is not admitted.

        The route is compared byte by byte: no escape, query or scheme names another one.
        """
        if request.method != b"POST" or request.target not in ROUTES:
            raise RefusedError(404, "nodes do not make this request")
        names = [name for name, _ in request.headers]
        headers = {name: value for name, value in request.headers if name in FORWARDED}
        if len(headers) != sum(name in FORWARDED for name in names):
            raise RefusedError(401, "a header is repeated")
        signer = self.keys.signer(headers)
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if b"transfer-encoding" in names or len(lengths) != 1 or int(lengths[0]) > self.limits.body:
            raise RefusedError(413, f"the body has no length, or more than {self.limits.body} bytes")
        return signer, headers

    async def _forwarded(self, route: bytes, headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        try:
            return await self._upstream.post(route, headers, body)
        except TimeoutError:
            raise  # the deadline of the connection
        except (OSError, h11.RemoteProtocolError) as error:
            log.warning("the SuperLink does not answer the gate: %s", error or type(error).__name__)
            return Answer(503, [], b"", close=False)  # a node tries again after this status

    def _warn(self, address: str, refusal: RefusedError) -> None:
        """Log at most one line a minute about refused requests."""
        self._refused += 1
        if time.monotonic() - self._warned < SECONDS_BETWEEN_WARNINGS:
            return
        log.warning(
            "the gate refused %d requests; it answered the last one, from %s, with %d: %s",
            *(self._refused, address, refusal.status, refusal.reason),
        )
        self._refused, self._warned = 0, time.monotonic()


async def _readable(connection: socket.socket) -> None:
    """Wait until a connection has data, or has ended."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next event of a connection; read only as much as necessary."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(CHUNK))
    return event


def _answered(http: h11.Connection, answer: Answer) -> bytes:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    headers += [(b"connection", b"close")] if answer.close else []
    return _encoded(http, h11.Response(status_code=answer.status, headers=headers), answer.body)


def _encoded(http: h11.Connection, head: h11.Request | h11.Response, body: bytes) -> bytes:
    return b"".join(http.send(event) or b"" for event in (head, h11.Data(body), h11.EndOfMessage()))


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's TLS context. It uses TLS 1.3, which every node's Python has, and which has no renegotiation."""
    secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    secure.minimum_version = ssl.TLSVersion.TLSv1_3
    secure.load_cert_chain(certificate, key)
    return secure


def raise_file_limit(files: int) -> None:
    """Let this process and its child processes open `files` files; raise ConfigError if the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise ConfigError(
            where="the hard limit of open files",
            allowed=f"{files} or more for the gate",
            got=hard,
            remedy="Raise it, for example with ulimit -Hn 65536, LimitNOFILE=65536 in a systemd unit, or ulimits in a"
            " compose file",
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
