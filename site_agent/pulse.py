"""The agent's pulse: a small file in Prometheus' text format, written every few seconds, for health checks and for node-exporter's textfiles."""

from __future__ import annotations

import time
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.processes import Supervisor

FILE = "agent.prom"
EVERY_SECONDS, STALE_SECONDS = 5.0, 30.0


def beat(site: Path, supervisor: Supervisor) -> None:
    """Write which parts of the agent are up, and how often each was started again."""
    lines = ["# TYPE medsynx_site_seen_seconds gauge", f"medsynx_site_seen_seconds {time.time():.0f}"]
    lines.append("# TYPE medsynx_site_part_up gauge")
    parts = supervisor.services.items()
    lines += [f'medsynx_site_part_up{{part="{n}"}} {int(s.process.poll() is None)}' for n, s in parts]
    lines.append("# TYPE medsynx_site_part_restarts_total counter")
    lines += [f'medsynx_site_part_restarts_total{{part="{n}"}} {s.restarts}' for n, s in parts]
    part = site / f"{FILE}.part"
    part.write_text("\n".join(lines) + "\n", "utf-8")
    part.replace(site / FILE)


def check(site: Path) -> None:
    """Raise ``agent-down`` unless the agent wrote lately that all its parts are up."""
    file = site / FILE
    try:
        age, text = time.time() - file.stat().st_mtime, file.read_text("utf-8")
    except OSError:
        raise MedsynxError("agent-down", f"no agent of {site} has run") from None
    if not -STALE_SECONDS <= age <= STALE_SECONDS:
        raise MedsynxError("agent-down", f"the agent of {site} was last seen {age:,.0f} seconds ago")
    down = [
        line.split('"')[1]
        for line in text.splitlines()
        if line.startswith("medsynx_site_part_up{") and line.endswith(" 0")
    ]
    if down:
        raise MedsynxError("agent-down", f"not up: {', '.join(down)}")
