"""The site's two clocks: the wall clock, which can be set, and the time since this machine started, which cannot.

Every row of a chain carries both. While the wall clock is behind what the rows say it must be at least, the site answers nothing, so that setting it
back opens no hours again, gives no day's bytes twice and brings no expired approval back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TOLERANCE = timedelta(seconds=60)  #: what keeping a clock right (NTP) may move it at once
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """Both clocks at one moment; ``boot`` names the start of this machine that ``up`` counts seconds from (empty where it has no name)."""

    wall: datetime
    boot: str
    up: float


def read() -> Reading:
    """Both clocks now."""
    boot = BOOT_ID.read_text().strip()[:8] if BOOT_ID.exists() else ""
    up = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    return Reading(datetime.now(UTC), boot, round(up, 3))


def behind(rows: Sequence[Row], now: Reading) -> timedelta:
    """How far the wall clock is behind what the rows since the last acknowledgement say it must be at least; never below zero."""
    least = timedelta()
    for row in reversed(rows):
        least = max(least, _at(row) + _passed(row, now.boot, now.up) - now.wall)
        if row.get("kind") == "acknowledged":
            break
    return least


def jumps(rows: Sequence[Row]) -> dict[int, timedelta]:
    """Rows (by position) before which the wall clock was set, and by how much; below zero is back."""
    out = {}
    for number in range(1, len(rows)):
        before, row = rows[number - 1], rows[number]
        moved = _at(row) - _at(before) - _passed(before, row.get("boot", ""), row.get("up", 0.0))
        same = bool(row.get("boot")) and row.get("boot") == before.get("boot")
        if moved < -TOLERANCE or (same and moved > TOLERANCE):
            out[number] = moved
    return out


def _at(row: Row) -> datetime:
    return datetime.fromisoformat(row["at"])


def _passed(row: Row, boot: str, up: float) -> timedelta:
    """Time from a row to a later reading by the clock that cannot be set; none is known across a start of the machine."""
    return timedelta(seconds=up - row["up"]) if boot and row.get("boot") == boot else timedelta()
