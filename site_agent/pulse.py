"""The agent's pulse: a small file in Prometheus' text format, written every few seconds, for health checks and for node-exporter's textfiles."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.processes import Service, Supervisor, held
from site_agent.answers import Answers
from site_agent.condition import Condition, last_heard
from site_agent.policy import SiteFolder
from site_agent.secure_sum import forget_old

log = logging.getLogger("medsynx.site")

FILE, LOCK = "agent.prom", "run.lock"  #: the lock is the agent's for as long as it lives
EVERY_SECONDS, STALE_SECONDS = 5.0, 30.0
LOOK_SECONDS = 60.0  #: between two looks at the books


class Pulse:
    """What the agent of a site tells of itself."""

    def __init__(self, folder: SiteFolder) -> None:
        self.folder, self.looked, self.seen = folder, -LOOK_SECONDS, list[str]()

    def beat(self, supervisor: Supervisor) -> None:
        """Write it, with what the last look at the books has shown."""
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked, self.seen = time.monotonic(), Condition.of(self.folder).metrics()
            self._forget_old()
        beat(self.folder.path, supervisor, self.seen)

    def _forget_old(self) -> None:
        """What is promised to be kept for a day only, also when nobody asks this site any more."""
        try:
            forget_old(self.folder.path)
            Answers(self.folder.path / "runs").forget_old()
        except (OSError, sqlite3.Error, MedsynxError) as error:
            log.error("old secrets are not removed: %s", type(error).__name__)


def beat(site: Path, supervisor: Supervisor, more: Sequence[str] = ()) -> None:
    """Write which parts of the agent are up, and how often each was started again."""
    lines = ["# TYPE medsynx_site_seen_seconds gauge", f"medsynx_site_seen_seconds {time.time():.0f}"]
    lines.append("# TYPE medsynx_site_part_up gauge")
    parts = supervisor.services.items()
    lines += [f'medsynx_site_part_up{{part="{n}"}} {int(_up(s))}' for n, s in parts]
    lines.append("# TYPE medsynx_site_part_restarts_total counter")
    lines += [f'medsynx_site_part_restarts_total{{part="{n}"}} {s.restarts}' for n, s in parts]
    if heard := last_heard(site):
        lines += [
            "# TYPE medsynx_site_coordinator_heard_seconds gauge",
            f"medsynx_site_coordinator_heard_seconds {heard.timestamp():.0f}",
        ]
    part = site / f"{FILE}.part"  # old in a few seconds: not worth waiting for the disk, as medsynx.files does
    part.write_text("\n".join([*lines, *more]) + "\n", "utf-8")
    part.replace(site / FILE)


def _up(part: Service) -> bool:
    """Whether a part runs, and is not one that ends again and again: a SuperNode does, some seconds after its start, while it is not let in."""
    steady = not part.restarts or time.monotonic() - part.started >= STALE_SECONDS
    return part.process.poll() is None and steady


def check(site: Path) -> None:
    """Raise ``agent-down`` unless the agent lives and wrote lately that all its parts are up."""
    file = site / FILE
    try:
        age, text = time.time() - file.stat().st_mtime, file.read_text("utf-8")
    except OSError:
        raise MedsynxError("agent-down", f"no agent of {site} has run") from None
    if not held(site / LOCK):
        raise MedsynxError("agent-down", f"the agent of {site} has ended")
    if not -STALE_SECONDS <= age <= STALE_SECONDS:
        raise MedsynxError("agent-down", f"the agent of {site} was last seen {age:,.0f} seconds ago")
    down = [
        line.split('"')[1]
        for line in text.splitlines()
        if line.startswith("medsynx_site_part_up{") and line.endswith(" 0")
    ]
    if down:
        raise MedsynxError("agent-down", f"not up: {', '.join(down)}")
