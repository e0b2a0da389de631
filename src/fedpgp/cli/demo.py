"""`fedpgp demo`: a small federation in a browser."""

from importlib.util import find_spec
from typing import Annotated

import typer

import fedpgp
from fedpgp.cli.options import Cache
from fedpgp.cli.printing import out, say

NEEDS = ("starlette", "uvicorn", "python_multipart")


def demo(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any other than loopback lets other machines in.")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    cache: Cache = None,
) -> None:
    """Watch a small federation live in a browser, on drawings or photographs, and classify images with its prompts.

    The page is served to this machine alone. Ctrl-C ends it.

    Examples:
        fedpgp demo
        fedpgp demo --port 0 --open
    """
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        raise fedpgp.FedPGPError(f'fedpgp demo needs {", ".join(missing)}: pip install "fedpgp[demo]"')
    from fedpgp.demo.guard import is_loopback
    from fedpgp.demo.server import listen, serve

    with listen(host, port) as listening:
        port = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not is_loopback(host):
            say(
                f"fedpgp: warning: --host {host} lets every machine that reaches this one start and stop federations;"
                " there is no password"
            )
        address = f"http://{shown}:{port}/"
        out.print(f"fedpgp demo is at {address}  (Ctrl-C ends it)", markup=False)
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        serve(listening, host, cache)
    say("fedpgp demo has ended")
