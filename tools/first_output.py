"""Measure the time to the first output of each command. Each command is killed after its first output.

    python tools/first_output.py RUN IMAGE

RUN: a finished run. IMAGE: an image file. The table has the seconds until the first byte on standard output or standard
error (limit: 0.5), the CPU seconds of the process until then, which do not depend on the load of the machine, and the
first line.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.5  # seconds
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


def timed(arguments: list[str], directory: Path) -> tuple[float, float, str]:
    """Run a command until its first output; return the seconds, the CPU seconds, and the first line."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fedpgp", *arguments]
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory, env=environment
    ) as process:
        assert process.stdout is not None
        text = os.read(process.stdout.fileno(), 65536).decode(errors="replace")
        first = time.perf_counter() - started
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
    busy = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return first, busy, next((line.strip() for line in text.splitlines() if line.strip()), "")


def main() -> None:
    """Print the table."""
    run, image = (str(Path(place).absolute()) for place in sys.argv[1:])
    slow = 0
    with tempfile.TemporaryDirectory() as directory:
        for arguments in commands(run, image):
            first, busy, line = timed(arguments, Path(directory))
            slow += first > LIMIT
            print(f"{first:5.2f} {busy:5.2f}  fedpgp {' '.join(arguments)[:60]:60}  {line[:70]}", flush=True)
    print(f"later than {LIMIT} s: {slow}")


if __name__ == "__main__":
    main()
