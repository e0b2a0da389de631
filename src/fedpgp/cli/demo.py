"""`fedpgp demo`: show a small federation in a browser."""

from importlib.util import find_spec
from typing import Annotated

import typer

import fedpgp
from fedpgp.cli.options import Cache
from fedpgp.cli.printing import next_command, out, say

NEEDS = ("starlette", "uvicorn", "python_multipart")


def demo(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the page. With 0, any free port is used.")
    ] = 7860,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address of the page. Other machines can connect, unless this is a loopback address."
        ),
    ] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    cache: Cache = None,
) -> None:
    """Show the training of a small federation in a browser, and classify images with the trained prompts.

    You can choose icons or photographs. Other machines can open the page only if you set --host. Ctrl-C stops the
    command.

    Examples:
        fedpgp demo
        fedpgp demo --port 0 --open
    """
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        raise fedpgp.FedPGPError(
            f"the demo needs packages that are not installed: {', '.join(missing)}",
            remedy='Install them with `pip install "fedpgp[demo]"`',
        )
    from fedpgp.demo.guard import is_loopback
    from fedpgp.demo.server import listen, serve

    with listen(host, port) as listening:
        port = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not is_loopback(host):
            say(
                f"fedpgp: warning: With --host {host}, every machine that reaches this one can start and stop"
                " federations. There is no password."
            )
        address = f"http://{shown}:{port}/"
        out.print(f"fedpgp demo is at {address}  (stop it with Ctrl-C)", markup=False, soft_wrap=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        serve(listening, host, cache)
    say("fedpgp demo has stopped.")
    next_command("compare")
