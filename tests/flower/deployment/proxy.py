"""A TCP proxy on the loopback address, which stores all bytes, and can stall or cut connections."""

import contextlib
import socket
import threading
from types import TracebackType


class Proxy:
    """Passes connections on to a port. `up` and `down` have all bytes to and from it; clear `flowing` to stall."""

    def __init__(self, target: int):
        self.target = target
        self.up, self.down = bytearray(), bytearray()
        self.flowing, self._closed = threading.Event(), threading.Event()
        self.flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self.flowing.set()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections; new connections are possible."""
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._connections.clear()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self._connections += [near, far]
            for source, sink, kept in ((near, far, self.up), (far, near, self.down)):
                threading.Thread(target=self._pass, args=(source, sink, kept), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                kept += data
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
