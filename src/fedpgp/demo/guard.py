"""Who may talk to the demo: the page that it serves itself, and nobody whom a browser was led to it by.

A server on loopback is open to every page that the same browser shows. A name of somebody else that resolves to this
machine (DNS rebinding) is refused by the Host header, a form of another site by Origin, and a flood by its length.
"""

import ipaddress
import json
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 8 * 2**20  # bytes of a request
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class _TooLargeError(Exception):
    pass


class Guard:
    """Refuses requests of other names or sites, and bodies of more than `LARGEST` bytes, before they are read.

    host: on which the server listens.
    """

    def __init__(self, app: ASGIApp, host: str):
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        started = False
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:  # without a length in its head
                raise _TooLargeError
            return message

        async def dressed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        refused = self._refused(scope["method"], headers)
        try:
            if refused is None:
                await self._app(scope, counted, dressed)
        except _TooLargeError:
            refused = None if started else _too_large()
        if refused is not None:
            status, text = refused
            body = json.dumps({"error": text}).encode()
            length = str(len(body)).encode()
            head = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
            await dressed({"type": "http.response.start", "status": status, "headers": head})
            await dressed({"type": "http.response.body", "body": body})

    def _refused(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and words of a refusal."""
        host = headers.get("host", "")
        if not answers_to(host, self._host):
            return 403, "this server answers to its own address alone: open the one that fedpgp demo printed"
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return 403, "this server takes nothing from pages of other sites"
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "this server takes nothing from pages of other sites"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "Content-Length must be a number"
        return _too_large() if int(length) > LARGEST else None


def _too_large() -> tuple[int, str]:
    return 413, f"an upload must have at most {LARGEST // 2**20} MB: make the picture smaller"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, that no other reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def answers_to(header: str, host: str) -> bool:
    """Whether a Host header names a server that listens on `host`.

    Loopback names always do; beside them the host itself, and where that is every address of the machine (0.0.0.0, ::),
    any address and the machine's own name: an attacker's rebound name is neither.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    if is_loopback(name) or name == host.lower():
        return True
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            return False
    except ValueError:
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name in (socket.gethostname().lower(), socket.getfqdn().lower())
