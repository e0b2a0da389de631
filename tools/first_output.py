"""Measure the time to the first output of each command, and its whole time.

    python tools/first_output.py RUN IMAGE

RUN: a finished run of the photographs or pictograms. IMAGE: an image file. Results are written to a temporary
directory. The table has the seconds until the first byte on standard output or standard error (limit: 0.5), until the
end of the command, and the first line.
"""

import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.5  # seconds
LONGEST = 120.0  # seconds after which a command is stopped
SHORT = ["--rounds", "1", "--set", "task.clients=2", "--set", "task.shots=1"]


def commands(run: str, image: str) -> list[list[str]]:
    """Return a short call of each command."""
    one = ["--method", "promptfl", *SHORT]
    return [
        ["--help"],
        ["--version"],
        ["compare", "--help"],
        ["compare", "--methods", "zero-shot,promptfl", *SHORT],
        ["run", *one],
        ["tune", "--methods", "promptfl", "--trials", "1", "--seeds", "1", *SHORT],
        ["sweep", "--grid", "task.shots=1,2", "--methods", "promptfl", *SHORT],
        ["ablate", "--studies", "bottleneck", "--dry-run", *SHORT],
        ["reproduce", "--list"],
        ["reproduce", "base-to-novel", "--embedded", "--dry-run"],
        ["join", "--from", run, "--data", "photos", "--shots", "1"],
        ["predict", run, image],
        ["export", run],
        ["report", run],
        ["show", run],
        ["methods"],
        ["methods", "fedpgp"],
        ["config"],
        ["bench", "--shape", "pictoclip", "--parts", "step", "--repeat", "1"],
        ["doctor"],
        ["doctor", "--backbone", "photoclip"],
        ["data", "check", "photos"],
        ["data", "show"],
        ["data", "layouts"],
        ["data", "get", "nothing"],
        ["cache", "list"],
        ["cache", "clear", "--stale", "--yes", "--cache-dir", "features"],
        ["federate", "init", "ours"],
        ["federate", "renew", "ours"],
        ["federate", "app-hash", "ours/app"],
        ["federate", "server", "ours"],
        ["federate", "node", "ours/nodes/node-0", "--check"],
        ["federate", "up", "--local", "--nodes", "2", *one],
        ["demo", "--port", "0"],
    ]


def timed(arguments: list[str], directory: Path) -> tuple[float, float, str, int | None]:
    """Run a command; return the seconds to its first output and to its end, its first line, and its exit code."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpgp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=environment,
    )
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    first, text = float("nan"), b""
    while (left := started + LONGEST - time.perf_counter()) > 0:
        if not selector.select(left):
            break
        content = os.read(process.stdout.fileno(), 65536)
        first = time.perf_counter() - started if not text else first
        text += content
        if not content or (arguments[0] == "demo" or arguments[:2] == ["federate", "server"]):
            break
    if process.poll() is None:
        process.terminate()
    process.wait()
    lines = re.sub(r"[╭╰─╮╯│]", "", text.decode(errors="replace")).split("\n")
    line = next((line.strip() for line in lines if line.strip()), "")
    return first, time.perf_counter() - started, line, process.returncode


def main() -> None:
    """Print the table."""
    run, image = (str(Path(place).absolute()) for place in sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        for label in ("cat", "dog"):
            for number in range(10):
                place = Path(directory, "photos", label, f"{number}.png")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(Path(image).read_bytes())
        slow = 0
        for arguments in commands(run, image):
            first, whole, line, code = timed(arguments, Path(directory))
            slow += first > LIMIT
            print(
                f"{first:6.2f} {whole:7.2f} {code!s:>4}  fedpgp {' '.join(arguments)[:60]:60}  {line[:70]}", flush=True
            )
    print(f"later than {LIMIT} s: {slow}")


if __name__ == "__main__":
    main()
