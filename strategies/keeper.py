"""Keeps runs going: starts those that were asked for, starts again those whose ServerApp died, ends those that are to stop.

Everything is in the coordinator's folder: whoever may write there may ask for a run, and a service that was killed goes on from what it finds::

    runs/RUN/request.json   the study's digest; whoever wrote it asked for the run
    runs/RUN/attempts.json  Flower's run id of each start, and why there was one
    runs/RUN/lock           held (flock) by the ServerApp for as long as it lives: it says so itself, however it died
    runs/RUN/stop           the run is to stop
    runs/RUN/result.json    how it ended; written once, and then nobody touches the run again
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from strategies.control import Control
from strategies.coordinator import CoordinatorFolder, fail
from strategies.lock import holder

log = logging.getLogger("medsynx.coordinator")
LIMIT = 5  #: restarts of a run that finishes no further exchange
RESTARTED, DIED = "the coordinator's service restarted", "its ServerApp ended without a result"
LOOK_SECONDS = 2.0  #: how often Flower is asked about a run whose ServerApp is not there
KILL_SECONDS, LEAVE_SECONDS = (
    10.0,
    30.0,
)  #: a conductor is killed after; a lock that is held all the same is left alone after


@dataclass
class _Watched:
    """A run this process started; ``looked`` is when Flower was last asked about it."""

    flower: int
    looked: float = field(default_factory=time.monotonic)


class Keeper:
    """Tends the runs of one coordinator's folder.

    Args:
        control: of the SuperLink that runs them.
    """

    def __init__(self, folder: CoordinatorFolder, control: Control) -> None:
        self.folder, self.control = folder, control
        self.watched: dict[str, _Watched] = {}
        self.unnoted: dict[str, list[dict[str, Any]]] = {}  # starts for which the disk had no room

    def tend(self) -> None:
        """Look after every run that has no result; to be called now and then.

        A SuperLink that is away is waited for, and so is a disk. A run whose files cannot be read is failed, and the others go on.
        """
        for name in self.folder.open_runs():
            try:
                try:
                    self._tend(name)
                except (ValueError, KeyError, TypeError) as broken:
                    log.error("run %s: its files cannot be read (%s)", name, type(broken).__name__)
                    fail(self.folder, name, "coordinator-failed", "the run's files at the coordinator cannot be read")
            except httpx.HTTPError as away:
                log.debug("run %s: the SuperLink does not answer (%s)", name, type(away).__name__)
            except OSError as trouble:
                log.error("run %s: %s", name, trouble)

    def _tend(self, name: str) -> None:
        folder, watched = self.folder.run(name), self.watched.get(name)
        if (folder / "stop").exists():
            if self._end(name) and self.folder.result(name) is None:
                fail(self.folder, name, "run-stopped", "stopped by the coordinator")
        elif watched is None:
            if self._end(name):
                self._start(name, RESTARTED if self._attempts(name) else "asked for")
        elif not self._lives(folder, watched) and self.folder.result(name) is None and self._end(name):
            self._start(name, DIED)

    def _lives(self, folder: Path, watched: _Watched) -> bool:
        told, living = holder(folder)
        if living:
            return True
        if told and told["flower"] == str(watched.flower):
            return False  # it was there and is not any more
        if time.monotonic() - watched.looked < LOOK_SECONDS:
            return True
        watched.looked = time.monotonic()
        return self.control.status(watched.flower)[0] != "finished"  # not there yet, or never to come

    def _start(self, name: str, why: str) -> None:
        attempts, done = self._attempts(name), self.folder.exchanges(name)
        # what the service's end took along says nothing of the run
        own = [a for a in attempts if a["why"] != RESTARTED]
        if why == DIED and len(own) > LIMIT and all(a["exchanges"] == done for a in own[-LIMIT - 1 :]):
            fail(
                self.folder,
                name,
                "coordinator-failed",
                f"started {LIMIT + 1} times behind exchange {done} and died each time",
            )
            return
        flower = self.control.start(str(self.folder.request(name)["study"]), name)
        self.watched[name], at = _Watched(flower), datetime.now(UTC).isoformat(timespec="seconds")
        unnoted = self.unnoted.setdefault(name, [])
        unnoted.append({"flower": str(flower), "at": at, "why": why, "exchanges": done})
        while unnoted:
            self.folder.add_attempt(name, unnoted[0])
            del unnoted[0]
        log.info("run %s: started (%s), %d exchanges are done", name, why, done)

    def _attempts(self, name: str) -> list[dict[str, Any]]:
        """Every start of a run, noted or not."""
        return [*self.folder.attempts(name), *self.unnoted.get(name, [])]

    def _end(self, name: str) -> bool:
        """Make sure that no ServerApp conducts this run any more. False when its lock stays held: the run is left as it is until the next look."""
        for attempt in self._attempts(name)[-1:]:
            with contextlib.suppress(httpx.HTTPStatusError):  # it has ended, or this SuperLink never knew it
                if self.control.status(int(attempt["flower"]))[0] != "finished":
                    self.control.stop(int(attempt["flower"]))
        folder, began = self.folder.run(name), time.monotonic()
        while (found := holder(folder))[1] and found[0]:
            if time.monotonic() - began > LEAVE_SECONDS:
                log.error("run %s: process %s does not let go of its lock", name, found[0]["pid"])
                return False
            late = time.monotonic() - began > KILL_SECONDS
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(found[0]["pid"]), signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.2)
        return True
