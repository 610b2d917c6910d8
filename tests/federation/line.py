"""A TCP line between a site and the gate that can go dead, as when a cable is pulled: both ends keep their sockets and hear nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress


class Line:
    """Forwards a port of its own to another one of this machine. While it is dead, bytes wait in it as they would for TCP's next attempt."""

    def __init__(self, to: int) -> None:
        self.to, self._alive = to, threading.Event()
        self._alive.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    @contextmanager
    def dead(self):
        self._alive.clear()
        try:
            yield
        finally:
            self._alive.set()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._start(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        self._alive.wait()
        with suppress(OSError):
            far = socket.create_connection(("127.0.0.1", self.to))
            self._start(self._forward, near, far)
            self._forward(far, near)

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._alive.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    @staticmethod
    def _start(what, *more) -> None:
        threading.Thread(target=what, args=more, daemon=True).start()
