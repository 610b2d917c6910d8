"""A small supervisor: named processes with log files, restarts where asked, and nothing left behind.

Each process leads a group of its own and dies with the supervisor's process (Linux parent-death signal), also when that is killed with SIGKILL;
its own children die with the group or, for Flower's, by watching their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from medsynx.errors import MedsynxError

PR_SET_PDEATHSIG = 1
#: Pause before a restart, doubled with each short life in a row up to the longest: Flower refuses a SuperNode that still counts as online, for
#: up to 60 seconds, and a wrong key or a closed port is not to be hammered at.
RESTART_SECONDS, LONGEST_SECONDS, STEADY_SECONDS = 5.0, 20.0, 60.0
TERM_SECONDS = 4.0
LOG_BYTES = 10 * 2**20  #: of a log before it is cut; what it held before is kept once, as NAME.1


_told: set[int] = set()


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago, another one each time: who was told one may not listen there yet."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port not in _told:
            _told.add(port)
            return port


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when its parent ends, however that is; at once when that is no longer ``parent``. Linux only."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_when_killed() -> None:
    """A plain kill ends this process like Ctrl-C does, also where a script started it in the background and its shell has SIGINT ignored."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


@contextmanager
def alone(file: Path, refusal: MedsynxError) -> Iterator[None]:
    """Hold a lock file (0600) within the block; raises ``refusal`` when another process does. It is let go of however this process ends."""
    lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refusal from None
        yield
    finally:
        os.close(lock)


def held(file: Path) -> bool:
    """Whether a process has this lock file (:func:`alone`). A shared lock asks: who only looks holds nobody up who looks too."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@dataclass
class Service:
    """One supervised process."""

    name: str
    command: list[str]
    log: Path
    env: dict[str, str]
    restart: bool
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    died: float | None = None
    restarts: int = 0
    short: int = 0  #: short lives in a row
    first_pause: float | None = None
    give_up: int | None = None
    term: float | None = None

    @property
    def pause(self) -> float:
        """Seconds from its end to its restart."""
        first = RESTART_SECONDS if self.first_pause is None else self.first_pause
        return float(min(first * 2 ** min(self.short, 8), LONGEST_SECONDS))

    @property
    def gone(self) -> bool:
        """Whether it ended for good."""
        lives = self.restart and (self.give_up is None or self.short < self.give_up)
        return not lives and self.process.poll() is not None


@dataclass
class Supervisor:
    """Starts processes and ends all of them when it is left, whatever happened."""

    services: dict[str, Service] = field(default_factory=dict)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: list[str],
        log: Path,
        env: dict[str, str] | None = None,
        *,
        restart: bool = False,
        pause: float | None = None,
        give_up: int | None = None,
        term: float | None = None,
    ) -> None:
        """Start a process; its output goes to ``log``.

        Args:
            env: added to this process's environment.
            restart: start it again when it ends (noticed by :meth:`tend`).
            pause: seconds before the first restart, :data:`RESTART_SECONDS` when omitted.
            give_up: after so many short lives in a row it stays down; never when omitted.
            term: seconds it has to end after a SIGTERM, :data:`TERM_SECONDS` when omitted.
        """
        full = {**os.environ, **(env or {})}
        process = _spawn(command, log, full)
        service = Service(name, command, log, full, restart, process, first_pause=pause, give_up=give_up, term=term)
        self.services[name] = service

    def tend(self) -> None:
        """Restart what ended and is to be restarted, cut logs that have grown; to be called now and then."""
        for service in self.services.values():
            _cut(service.log)
            if not service.restart or service.gone or service.process.poll() is None:
                continue
            now = time.monotonic()
            if service.died is None:
                service.died = now
                service.short = 0 if now - service.started >= STEADY_SECONDS else service.short
            elif now - service.died >= service.pause:
                service.process = _spawn(service.command, service.log, service.env)
                service.started, service.died = now, None
                service.restarts, service.short = service.restarts + 1, service.short + 1

    def ended(self) -> list[str]:
        """Names of processes that ended and are not restarted, or no more."""
        return [n for n, s in self.services.items() if s.gone]

    def pids(self) -> dict[str, int]:
        """Process id of each running service."""
        return {n: s.process.pid for n, s in self.services.items() if s.process.poll() is None}

    def tail(self, name: str, lines: int = 8) -> list[str]:
        """The end of a service's log, whenever it was cut."""
        log = self.services[name].log
        held = [f.read_text("utf-8", "replace") for f in (_older(log), log) if f.is_file()]
        return "".join(held).splitlines()[-lines:]

    def stop(self) -> None:
        """SIGTERM to every group, SIGKILL to what is left. Newest first; a second Ctrl-C or kill does not cut it short."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in before:
                signal.signal(number, signal.SIG_IGN)
        try:
            running = list(reversed(self.services.values()))
            for service in running:
                _kill(service.process.pid, signal.SIGTERM)
            began = time.monotonic()
            for service in running:
                until = began + (TERM_SECONDS if service.term is None else service.term)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    service.process.wait(max(0.0, until - time.monotonic()))
            for service in running:  # also groups whose leader is gone already
                _kill(service.process.pid, signal.SIGKILL)
                service.process.wait()
            self.services.clear()
        finally:
            with contextlib.suppress(ValueError):
                for number, handler in before.items():
                    signal.signal(number, handler)


def _spawn(command: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    _cut(log)
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def lead() -> None:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("ab") as out:
        return subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=lead
        )


def _older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _cut(log: Path) -> None:
    """Move what a log of :data:`LOG_BYTES` holds aside. Its writer has it open and appends, so it is copied and emptied, not renamed.

    A line that is written in the moment between the last read and the cut, and no other, is lost.
    """
    with contextlib.suppress(OSError):  # there is none yet; no room for a copy: then it is not emptied
        if log.stat().st_size < LOG_BYTES:
            return
        with log.open("r+b") as file, _older(log).open("wb") as kept:
            while part := file.read(2**20):
                kept.write(part)
                kept.flush()
            file.truncate(0)


def _kill(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
