"""A gate in a thread, with a stub of a SuperLink behind it, and requests with the signature of a node."""

import asyncio
import base64
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h11
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpgp.flower.deployment.credentials import public_key_pem, write_authority, write_node_key, write_server
from fedpgp.flower.deployment.gate import Gate, Keys, Limits, server_context

ROUTE = "/v1/fleet/pull-messages"


class Received(NamedTuple):
    """A request that reached the stub."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Setup:
    """A running gate: `directory` has ca.crt, server.crt, server.key and the public keys of node-0 and node-1."""

    directory: Path
    port: int
    gate: Gate
    received: list[Received] = field(default_factory=list)

    def headers(self, node: int = 0, age: float = 0.0, **changes: str | None) -> dict[str, str]:
        """Return the headers of a node's request, signed `age` seconds ago, with changes; None removes a header."""
        headers = signed(self.directory / f"node-{node}.key", age) | {"content-type": "application/x-protobuf"}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return {name: value for name, value in headers.items() if value is not None}

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        secure = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        return secure.wrap_socket(plain, server_hostname="127.0.0.1")

    def status(self, head: bytes, body: bytes = b"") -> int:
        """Send bytes and return the status of the answer, or 0; the connection must end after a refusal."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # the connection may be closed before all is sent
                connection.sendall(head + body)
            status, rest = answer(connection)
            if status in (401, 404, 413):
                assert b"connection: close" in rest.lower()
                assert connection.recv(1) == b""
            return status

    def ask(self, route: str = ROUTE, body: bytes = b"ping", method: str = "POST", **changes: str | None) -> int:
        return self.status(head(route, self.headers(**{"content_length": str(len(body)), **changes}), method), body)


def signed(key: Path, age: float = 0.0) -> dict[str, str]:
    """Return the headers that Flower's NodeAuthHttpInterceptor adds to a request."""
    secret = serialization.load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    signature = secret.sign(moment.isoformat().encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public_key_pem(secret.public_key())).decode(),
        "flwr-timestamp": moment.isoformat(),
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def head(route: str, headers: dict[str, str], method: str = "POST") -> bytes:
    lines = [f"{method} {route} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """Return the status and the received bytes of the first answer; the status is 0 without an answer."""
    content = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in content and (data := connection.recv(65536)):
            content += data
    return (int(content.split()[1]) if content else 0), content


@contextlib.contextmanager
def running(directory: Path, limits: Limits = Limits(), upstream: str | None = None) -> Iterator[Setup]:  # noqa: B008
    """Run a gate in front of a stub or of another address. Write certificates and keys to an empty directory."""
    if not (directory / "ca.crt").exists():
        write_authority(directory)
        write_server(directory, directory, "localhost")
        for node in range(2):
            write_node_key(directory / f"node-{node}.key", directory / f"node-{node}.pub")
    secure = server_context(directory / "server.crt", directory / "server.key")
    received: list[Received] = []
    loop, started = asyncio.new_event_loop(), threading.Event()
    listener, inner = (socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2))
    gate = Gate(upstream or f"127.0.0.1:{inner.getsockname()[1]}", directory / "ca.crt", Keys(directory), limits)

    async def serve() -> None:
        async def stub(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            http = h11.Connection(h11.SERVER)
            ends = (OSError, h11.RemoteProtocolError, asyncio.CancelledError)
            with contextlib.closing(writer), contextlib.suppress(*ends):
                while isinstance(request := await _event(http, reader), h11.Request):
                    body = b""
                    while isinstance(event := await _event(http, reader), h11.Data):
                        body += bytes(event.data)
                    received.append(Received(request.target, list(request.headers), body))
                    reply = [("content-length", "4"), ("server", "stub"), ("content-type", "application/x-protobuf")]
                    for part in (h11.Response(status_code=200, headers=reply), h11.Data(b"pong"), h11.EndOfMessage()):
                        writer.write(http.send(part))
                    http.start_next_cycle()

        server = await asyncio.start_server(stub, sock=inner, ssl=secure)
        async with server:
            started.set()
            await gate.serve(listener, secure)

    task = loop.create_task(serve())

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(_end_all())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        started.wait()
        yield Setup(directory, listener.getsockname()[1], gate, received)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        listener.close()
        inner.close()


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(65536))
    return event


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
