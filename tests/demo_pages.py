"""What the tests of the demo's page share: the demo as a process, a cable to cut, and waits."""

import re
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time

from playwright.sync_api import expect

MOST = 60  # seconds from the start to a trained federation
KINDS = ("error", "warning")  # kinds of console messages that fail a test
READY = "Ready to start"


class Demo:
    """A demo in a separate process, which must end without an error at Ctrl-C."""

    def __init__(self, cache, err):
        self._cache, self._err = cache, err

    def start(self, port: int = 0) -> str:
        """Start the demo and return its address."""
        command = [sys.executable, "-m", "fedpgp", "demo", "--port", str(port), "--cache-dir", str(self._cache)]
        with self._err.open("w") as err:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        line = self.process.stdout.readline()
        return re.search(r"http://127\.0\.0\.1:\d+/", line)[0]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        self.process.stdout.close()
        told = ["fedpgp: loading libraries …", "fedpgp demo has stopped.", "Next: fedpgp compare"]
        assert self._err.read_text(encoding="utf-8").splitlines() == told


class Cable(socketserver.ThreadingTCPServer):
    """Forwards connections to a port of this machine. Once cut, it forwards nothing, but closes no connection."""

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Connection)
        self.port, self.whole = port, threading.Event()
        self.whole.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as far:
            other = {self.request: far, far: self.request}
            while True:
                for one in select.select(list(other), [], [])[0]:
                    content = one.recv(65536)
                    self.server.whole.wait()
                    if not content:
                        return
                    other[one].sendall(content)


def port_of(address: str) -> int:
    return int(re.search(r":(\d+)/", address)[1])


def training(page, rounds: int) -> None:
    """Wait until a federation that is still training has finished this many rounds.

    It checks in every frame, because a check once a second could miss a round.
    """
    page.wait_for_function(
        "rounds => document.querySelectorAll('#rounds tbody tr').length >= rounds &&"
        " document.getElementById('start').getAttribute('aria-disabled') === 'true'",
        arg=rounds,
        timeout=1000 * MOST,
    )


def trained(page) -> float:
    """Wait for the end of the training, and return the seconds."""
    started = time.monotonic()
    expect(page.locator("#status")).to_contain_text("Finished", timeout=1000 * MOST)
    return time.monotonic() - started
