"""Seconds and memory of a deployed federation on one machine: real SuperLink, gate, SuperNodes and executors over TLS, each a process of its own.

    python benchmarks/federation/rounds.py          # 4, 10 and 20 sites, a JSON line each
    python benchmarks/federation/rounds.py 4 --kill # and the seconds until a run goes on after a kill -9 of each party

Sites hold 300 patients, so that what is measured is the runtime and not the sites' work. Two runs a federation; figures are of the second, whose
imports are done. Memory is the proportional set size (shared pages counted once), in MB.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from medsynx.processes import Supervisor
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY
from tests.federation.field import Field

SIZES = (4, 10, 20)


def megabytes(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def one(sites: int, folder: Path, kill: bool) -> dict[str, Any]:
    raw = {**RAW_STUDY, "name": "bench", "rounds": {"quorum": max(2, sites - 2), "deadline_seconds": 120}}
    with Supervisor() as supervisor:
        began = time.monotonic()
        field = Field(folder, supervisor, parse_study(raw), {f"site-{k:02d}": 300 for k in range(sites)})
        online = time.monotonic() - began
        for run in ("first", "second"):
            asked = time.monotonic()
            field.ask(run)
            field.until(field.at(run, "tables"), 300)
            first = time.monotonic() - asked
            memory = {"server app": megabytes(field.server_app(run) or os.getpid())}
            result = field.result(run, 900)
        pids = supervisor.pids()
        memory |= {n: megabytes(pids[n]) for n in ("superlink", "superexec")}
        for kind in ("supernode", "executor"):
            memory[kind] = median(megabytes(p) for n, p in pids.items() if n.startswith(kind))
        out = {
            "sites": sites,
            "missing": result["missing"],
            "online_seconds": round(online, 1),
            "first_round_seconds": round(first, 1),
            "round_seconds": [r["seconds"] for r in field.rounds("second")],
            "run_seconds": result["seconds"],
            "megabytes": {n: round(v) for n, v in memory.items()},
            "megabytes_all": round(sum(megabytes(p) for p in pids.values())),
        }
        if kill:
            out["recovery_seconds"] = {
                v: recovery(field, v) for v in ("server app", "superlink", "superexec", "executor", "supernode")
            }
        return out


def recovery(field: Field, victim: str) -> float:
    """Coordinator's parts: from the kill within the second exchange to that exchange's answers. A site's: until its node is online and answers."""
    run = f"kill-{victim.replace(' ', '-')}"
    if victim in ("executor", "supernode"):
        service = f"{victim} site-00"
        restarts = field.federation.supervisor.services[service].restarts
        os.kill(field.pid(service), signal.SIGKILL)
        began = time.monotonic()
        field.until(lambda: field.federation.supervisor.services[service].restarts > restarts, 60)
        if victim == "supernode":
            stays = lambda: field.federation.supervisor.services[service].process.poll() is None  # noqa: E731
            field.until(lambda: stays() and "registered" in log_since(field, service), 200)
        else:
            field.until(lambda: "ready" in log_since(field, service), 60)
        return round(time.monotonic() - began, 1)
    field.online(seconds=200)
    field.ask(run)
    field.until(field.at(run, "cliques"), 200)
    done = field.coordinator.exchanges(run)
    pid = field.server_app(run) if victim == "server app" else field.pid(victim)
    os.kill(pid or 0, signal.SIGKILL)
    began = time.monotonic()
    field.until(lambda: field.coordinator.exchanges(run) > done, 300)
    seconds = round(time.monotonic() - began, 1)
    field.result(run, 600)
    return seconds


def log_since(field: Field, service: str) -> str:
    """The last lines of a service's log."""
    return "\n".join(field.federation.supervisor.tail(service, 3))


def main() -> None:
    sizes = [int(a) for a in sys.argv[1:] if a.isdigit()] or SIZES
    for sites in sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one(sites, Path(folder), "--kill" in sys.argv)), flush=True)


if __name__ == "__main__":
    main()
