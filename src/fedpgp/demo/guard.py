"""The guard of the demo's server: it answers only requests of the page that the server itself sends.

Every page in a user's browser can send requests to a server on the loopback address. The guard therefore checks the
Host header (against DNS rebinding, in which another site's name resolves to this machine), the Origin header (against
forms of other sites) and the length (against very large requests).
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
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


TOO_LARGE = f"the upload is larger than {LARGEST // 2**20} MB. Make the picture smaller."
CLOSE = {"connection": "close"}


class Guard:
    """Middleware that refuses requests from other sites or for other hosts, and bodies of more than `LARGEST` bytes.

    Parameters
    ----------
    app
        The application.
    host
        Host on which the server listens.
    """

    def __init__(self, app: ASGIApp, host: str):
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:  # a body without Content-Length
                raise HTTPException(413, TOO_LARGE, CLOSE)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, limited, with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host, length = headers.get("host", ""), headers.get("content-length", "0")
        if not answers_to(host, self._host):
            return _refused(403, "this is not the server's address. Open the address that fedpgp demo printed.")
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            other_origin = origin is not None and urlsplit(origin).netloc != host
            if other_origin or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _refused(403, "the request comes from the page of another site. Use the page of this server.")
        if not length.isdecimal():
            return _refused(400, "Content-Length must be a number.")
        return _refused(413, TOO_LARGE) if int(length) > LARGEST else None


def _refused(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status, CLOSE)


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost or a loopback address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def answers_to(header: str, host: str) -> bool:
    """Return whether a Host header names a server that listens on `host`.

    Loopback names and the host itself always do. If the host means all addresses of the machine (0.0.0.0, ::), any
    address and the machine's own name do, too. A name in a DNS rebinding attack is none of these.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    if is_loopback(name) or name == host.lower():
        return True
    listens_on = _address(host)
    if listens_on is None or not listens_on.is_unspecified:
        return False
    return _address(name) is not None or name in (socket.gethostname().lower(), socket.getfqdn().lower())


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
