"""How the cost of `marginals` grows with columns and with sites, on made-up tables. JSON out.

    python benchmarks/tabular/scale.py

Columns of eight levels, each a noisy copy of one of two hidden causes; 30,000 patients, epsilon 1. Seconds are of CPU: at one site (all its steps,
noise and bounds included) and at the coordinator (choosing and fitting), in one process.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsynx.study import parse_study
from onehost.simulate import make_sites
from site_agent.service import SiteService
from strategies.in_process import InProcessFederation
from strategies.rounds import Run

LEVELS, PATIENTS = 8, 30_000
CURVE = [(10, 4), (20, 4), (40, 4), (80, 4), (160, 4), (20, 10), (20, 100), (20, 1000)]


def table(rows: int, columns: int, rng: np.random.Generator) -> pd.DataFrame:
    causes = rng.integers(0, LEVELS, (rows, 2))
    keep = rng.random((rows, columns)) < 0.6
    codes = np.where(keep, causes[:, np.arange(columns) % 2], rng.integers(0, LEVELS, (rows, columns)))
    return pd.DataFrame(codes.astype(str), columns=[f"c{k}" for k in range(columns)])


def study(columns: int, sites: int) -> Any:
    named = {f"c{k}": {"type": "categorical", "levels": [str(v) for v in range(LEVELS)]} for k in range(columns)}
    named["c0"]["role"] = "target"
    named["c0"]["positive"] = ["4", "5", "6", "7"]
    return parse_study(
        {
            "manifest": 1,
            "name": "scale",
            "columns": named,
            "family": {"name": "marginals", "parameters": {"patients": PATIENTS}},
            "privacy": {"epsilon": 1.0, "delta": 1e-5},
            "rounds": {"quorum": sites, "deadline_seconds": 3600},
            "evaluation": {"federated": False},
        }
    )


def one(columns: int, sites: int) -> dict[str, Any]:
    rng, spec = np.random.default_rng(0), study(columns, sites)
    with tempfile.TemporaryDirectory() as folder:
        home, files = Path(folder), []
        for k in range(sites):
            files.append(home / f"{k}.csv")
            table(PATIENTS // sites, columns, rng).to_csv(files[-1], index=False)
        made = make_sites(spec, files, home / "sites", strict=False)
        spent = dict.fromkeys([s.name for s in made], 0.0)

        def timed(name: str, service: SiteService) -> Any:
            def answer(request: Any) -> Any:
                began = time.process_time()
                reply = service.answer(request)
                spent[name] += time.process_time() - began
                return reply

            return answer

        handlers = {s.name: timed(s.name, SiteService(s.folder, simulated=True)) for s in made}
        began = time.process_time()
        outcome = Run(spec, InProcessFederation(handlers), "scale", masked=False).conduct()
        whole = time.process_time() - began
    return {
        "columns": columns,
        "sites": sites,
        "rounds": len(outcome.rounds),
        "kilobytes_a_site": round(outcome.bytes_per_site / 1024, 1),
        "site_seconds": round(float(np.median(list(spent.values()))), 2),
        "coordinator_seconds": round(whole - sum(spent.values()), 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    for columns, sites in CURVE:
        print(json.dumps(one(columns, sites)), flush=True)


if __name__ == "__main__":
    main()
