"""A TCP line between a site and the gate that can fail as lines do: go dead or half dead, be cut, be slow and far away."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress


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
        self._start(self._accept)

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

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._start(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        self._open[True].wait()
        try:
            far = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            near.close()
            return
        self._start(self._forward, near, far, True)
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

    @staticmethod
    def _start(what, *more) -> None:
        threading.Thread(target=what, args=more, daemon=True).start()
