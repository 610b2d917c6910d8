"""A TCP line between a site and the gate that can fail as lines do: go dead or half dead, be cut, be slow and far away."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress


def start(what, *more) -> None:
    """Do something in a thread of its own."""
    threading.Thread(target=what, args=more, daemon=True).start()


def accept(listener: socket.socket, serve) -> None:
    """Serve each connection in a thread of its own, until the listener is closed."""
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            start(serve, near)


class Line:
    """Forwards a port of its own to another one of this machine. While it is dead, bytes wait in it as they would for TCP's next attempt.

    Attributes:
        rate: bytes a second in each direction, over all connections; any number of them when None.
        delay: seconds that each piece of bytes is on its way.
        cut: the chance that a piece of bytes is the last of its connection, which is reset.
        to: the port; another one stands for a coordinator that moved.
    """

    def __init__(self, to: int) -> None:
        self.to, self._open = to, {True: threading.Event(), False: threading.Event()}  # outwards, and back
        for direction in self._open.values():
            direction.set()
        self.rate: float | None = None
        self.delay = self.cut = 0.0
        self.cuts = 0
        self._turn = {True: threading.Lock(), False: threading.Lock()}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        start(accept, self._listener, self._connect)

    @contextmanager
    def dead(self, *, half: bool = False):
        """Nothing passes; with ``half`` requests do, and answers do not."""
        closed = [self._open[False]] if half else list(self._open.values())
        for direction in closed:
            direction.clear()
        try:
            yield
        finally:
            for direction in closed:
                direction.set()

    def close(self) -> None:
        self._listener.close()

    def _connect(self, near: socket.socket) -> None:
        self._open[True].wait()
        try:
            far = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            near.close()
            return
        start(self._forward, near, far, True)
        self._forward(far, near, False)

    def _forward(self, source: socket.socket, target: socket.socket, outwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                self._open[outwards].wait()
                if self.rate:
                    with self._turn[outwards]:
                        time.sleep(len(data) / self.rate)
                time.sleep(self.delay)
                if random.random() < self.cut:
                    self.cuts += 1
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        end.shutdown(socket.SHUT_RD)  # the other direction lets go of it too
                        end.close()
                    return
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Proxy:
    """An HTTPS proxy as hospitals have one: CONNECT and nothing else.

    Attributes:
        asked: what it was asked for, as ``METHOD HOST:PORT``, once each.
        refuses: with 503, as one that is restarted does.
    """

    def __init__(self) -> None:
        self.asked, self.refuses = set[str](), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        start(accept, self._listener, self._answer)

    def close(self) -> None:
        self._listener.close()

    def _answer(self, near: socket.socket) -> None:
        with suppress(OSError, ValueError), near:
            head = b""
            while b"\r\n\r\n" not in head and (data := near.recv(4096)):
                head += data
            method, place, _ = head.split(b"\r\n")[0].decode().split()
            self.asked.add(f"{method} {place}")
            if method != "CONNECT" or self.refuses:
                near.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = place.rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                start(self._forward, near, far)
                self._forward(far, near)

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
