"""Seconds and memory of a deployed federation on one machine: real SuperLink, gate, SuperNodes and executors over TLS, each a process of its own.

    python benchmarks/federation/rounds.py          # 4, 10 and 20 sites, a JSON line each

Sites hold 300 patients, so that what is measured is the runtime and not the sites' work. Two runs a federation; figures are of the second, whose
imports are done. Memory is the proportional set size (shared pages counted once), in MB.
"""

from __future__ import annotations

import json
import os
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


def one(sites: int, folder: Path) -> dict[str, Any]:
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
        return {
            "sites": sites,
            "missing": result["missing"],
            "online_seconds": round(online, 1),
            "first_round_seconds": round(first, 1),
            "round_seconds": [r["seconds"] for r in field.rounds("second")],
            "run_seconds": result["seconds"],
            "megabytes": {n: round(v) for n, v in memory.items()},
            "megabytes_all": round(sum(megabytes(p) for p in pids.values())),
        }


def main() -> None:
    sizes = [int(a) for a in sys.argv[1:] if a.isdigit()] or SIZES
    for sites in sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one(sites, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
