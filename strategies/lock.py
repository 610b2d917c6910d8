"""A run is conducted by one process at a time, and a dead one is known at once: the kernel lets go of its lock, however it died."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: somebody who only looks (:func:`holder`) has the lock for a moment, longer where the machine is busy
LOOK_SECONDS = 5.0


@contextmanager
def alone(folder: Path, flower_run: int) -> Iterator[None]:
    """Hold a run's lock; BlockingIOError when another ServerApp conducts the run."""
    until = time.monotonic() + LOOK_SECONDS
    with (folder / "lock").open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        file.truncate(0)
        file.write(json.dumps({"flower": str(flower_run), "pid": os.getpid()}))
        file.flush()
        yield


def holder(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """What the lock file says, and whether the process that wrote it lives. A shared lock asks: two who look do not take each other for it."""
    try:
        with (folder / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                living = False
            except BlockingIOError:
                living = True
            return json.loads(file.read() or "null"), living
    except (OSError, ValueError):
        return None, False
