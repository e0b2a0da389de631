"""The web server of the demo: the page, and the requests that the page sends."""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedpgp.demo.federation import holdings
from fedpgp.demo.guard import Guard
from fedpgp.demo.show import BusyError, Show
from fedpgp.demo.stage import SUBJECTS, DemoSetup, choices_of
from fedpgp.demo.uploads import class_names, number, picture_of
from fedpgp.errors import ConfigError, DataError, FedPGPError

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# All files that are served: the path of a request is never used as a path of a file.
PAGE = {"/": "index.html"} | {
    f"/{name}": name
    for name in (
        *("demo.css", "icon.svg", "demo.js", "connection.js", "federation.js", "prompts.js", "classify.js"),
        *("page.js", "charts.js", "draw.js"),
    )
}
LOOK = 0.1  # seconds between two checks for news
ALIVE = 5.0  # seconds without news after which a stream sends a sign of life, which the page waits for
VIEWER = re.compile(r"[0-9a-z]{1,16}")  # the name that a page gives itself
CONNECTIONS = 256


def create_app(show: Show, host: str = "127.0.0.1") -> Starlette:
    """Return the web application.

    Parameters
    ----------
    show
        The federation.
    host
        Host on which the application is served. It decides which host names are accepted.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        show.open()
        yield
        show.close()

    def clients(request: Request) -> Response:
        """Return the data that each client would have with these settings."""
        given = {name: number(name, value) for name, value in request.query_params.items()}
        return JSONResponse(holdings(show.stage(), choices_of(given)))

    async def subject(request: Request) -> Response:
        given = await _json(request)
        chosen = SUBJECTS.get(given) if isinstance(given, str) else None
        if chosen is None:
            allowed = f"one of {', '.join(SUBJECTS)}"
            remedy = "Choose one of these subjects"
            raise ConfigError(where="the subject", allowed=allowed, got=str(given)[:20], remedy=remedy)
        await run_in_threadpool(show.open, chosen, _viewer(request))
        return JSONResponse({}, 202)

    async def start(request: Request) -> Response:
        choices, replaces = choices_of(await _json(request)), request.query_params.get("replaces")
        replaced = None if replaces is None else number("replaces", replaces)
        return JSONResponse({"run": await run_in_threadpool(show.start, choices, _viewer(request), replaced)}, 202)

    async def stop(request: Request) -> Response:
        show.stop(_viewer(request))
        return JSONResponse({}, 202)

    async def classify(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=4) as form:
            upload, sample, classes = form.get("image"), form.get("sample"), form.get("classes", "")
            content = await upload.read() if isinstance(upload, UploadFile) else None
        names = class_names(classes if isinstance(classes, str) else "")

        def work() -> dict[str, Any]:
            if content is not None:
                picture = picture_of(content)
            elif isinstance(sample, str):
                picture = show.stage().sample(number("sample", sample))
            else:
                raise DataError("there is no picture to classify", remedy="Draw one, or choose a file")
            return show.classify(picture, names)

        return JSONResponse(await run_in_threadpool(work))

    def picture(request: Request) -> Response:
        content = show.stage().picture(request.path_params["split"], request.path_params["index"])
        if content is None:
            raise HTTPException(404, "there is no such picture")
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    def events(request: Request) -> Response:
        return StreamingResponse(
            _news(show),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    def page(request: Request) -> Response:
        name = PAGE[request.url.path]
        content = (resources.files("fedpgp.demo") / "static" / name).read_bytes()
        return Response(content, media_type=KINDS[Path(name).suffix], headers={"cache-control": "no-cache"})

    return Starlette(
        routes=[
            *(Route(path, page) for path in PAGE),
            Route("/api/clients", clients),
            Route("/api/events", events),
            Route("/api/subject", subject, methods=["POST"]),
            Route("/api/start", start, methods=["POST"]),
            Route("/api/stop", stop, methods=["POST"]),
            Route("/api/classify", classify, methods=["POST"]),
            Route("/pictures/{split:str}/{index:int}.png", picture),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={HTTPException: _refused, FedPGPError: _refused},
        lifespan=lifespan,
    )


async def _news(show: Show) -> AsyncIterator[str]:
    """Yield server-sent events with the whole view whenever it changes, and a sign of life if it does not."""
    version, silent = -1, 0.0
    while not show.closing:
        silent += LOOK
        if show.version != version:
            (version, view), silent = show.snapshot(), 0.0
            yield f"data: {view}\n\n"
        elif silent >= ALIVE:
            silent = 0.0
            yield "event: alive\ndata: 1\n\n"
        await asyncio.sleep(LOOK)


def _viewer(request: Request) -> str:
    """Return the name that the page of a request gives itself, or an empty name."""
    given = request.headers.get("x-viewer", "")
    return given if VIEWER.fullmatch(given) else ""


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
    return JSONResponse({"error": str(error)}, 409 if isinstance(error, BusyError) else 422)


async def _json(request: Request) -> Any:
    """Return the JSON body of a request; raise HTTPException for another content type, or text that is not JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "settings must be sent as application/json")
    try:
        return json.loads(await request.body())
    except ValueError as error:
        raise HTTPException(400, "settings must be JSON") from error


# ---------------------------------------------------------------------------------------------------------- the server


class _Server(uvicorn.Server):
    """A server that ends the streams of news when it must end. Otherwise it would wait for them."""

    def __init__(self, config: uvicorn.Config, show: Show):
        super().__init__(config)
        self._show = show

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._show.close()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Parameters
    ----------
    host
        Name or address of this machine.
    port
        Port; 0 means any free port.

    Raises
    ------
    ConfigError
        If the host is not one of this machine, or the port is not free.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            where="--host",
            allowed=f"a name or address of this machine ({error})",
            got=host,
            remedy="Use --host 127.0.0.1, which only this machine can reach",
        ) from error
    try:
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" means all addresses, including IPv4
        return socket.create_server(address, family=family, backlog=CONNECTIONS, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"the server cannot listen on {host}: {os.strerror(error.errno or 0)}",
            where=f"--port {port}",
            remedy="End the process that uses the port, such as another demo; or use --port 0 for any free port",
        ) from error


def serve(listening: socket.socket, host: str, cache: Path | None = None) -> None:
    """Serve the demo until Ctrl-C, then end its federation.

    Parameters
    ----------
    listening
        Socket that listens.
    host
        Host on which the socket listens.
    cache
        Directory of the image features; None means the user's cache directory.
    """
    show = Show(lambda subject, progress: DemoSetup.prepare(subject, cache, progress))
    config = uvicorn.Config(
        create_app(show, host),
        log_level="warning",
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=5,
        server_header=False,
        lifespan="on",
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has closed everything
        _Server(config, show).run(sockets=[listening])
    show.close()
    show.wait(5)
