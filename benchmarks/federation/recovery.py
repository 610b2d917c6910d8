"""Seconds from a kill -9 to the end of the exchange it fell into, and what the run says of the site: four real sites over TLS, by who was killed.

    python benchmarks/federation/recovery.py             # everybody, a JSON line each
    python benchmarks/federation/recovery.py superlink   # one of them

``none`` is the same moment without a kill. At a site the kill comes as soon as a task is there, at the coordinator while sites answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from medsynx.processes import Supervisor
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY
from tests.federation.field import Field, kill

SITES = ("east", "north", "south", "west")
STUDY = parse_study({**RAW_STUDY, "name": "bench", "rounds": {"quorum": 3, "deadline_seconds": 150}})
AT_COORDINATOR, AT_SITE = ("serverapp", "superexec", "superlink"), ("worker", "child", "executor", "supernode")


def one(field: Field, victim: str) -> dict[str, Any]:
    field.online(seconds=300)
    run, checkpoint = f"kill-{victim}", field.coordinator.run(f"kill-{victim}") / "checkpoint.npz"
    field.ask(run)
    field.until(field.at(run, "tables"), 120)
    if victim in AT_SITE:
        task = field.caught("west", worker=victim == "worker")
        kill(task if victim in ("worker", "child") else field.pid(f"{victim} west"))
    elif victim in AT_COORDINATOR:
        kill(field.server_app(run) if victim == "serverapp" else field.pid(victim))
    began = time.monotonic()
    field.until(checkpoint.exists, 300)
    waited = time.monotonic() - began
    result = field.result(run, 400)
    field.settled(run)
    first, *later = field.rounds(run)
    return {
        "killed": victim,
        "seconds": round(waited, 1),
        "missing_then": first["missing"],
        "missing_later": later[-1]["missing"],
        "status": result["status"],
        "run_seconds": result["seconds"],
    }


def main() -> None:
    victims = sys.argv[1:] or ["none", *AT_COORDINATOR, *AT_SITE]
    with tempfile.TemporaryDirectory() as folder, Supervisor() as supervisor:
        field = Field(Path(folder), supervisor, STUDY, dict.fromkeys(SITES, 300))
        for number in range(2):  # the first run of a federation imports what the others use
            field.ask(f"warm-{number}")
            field.result(f"warm-{number}", 300)
        for victim in victims:
            print(json.dumps(one(field, victim)), flush=True)


if __name__ == "__main__":
    main()
