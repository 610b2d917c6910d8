"""What secure sums are worth: the same sites, each with a generator of its own at the full budget, their rows pooled. JSON out.

    MEDSYNX_DATA=... python benchmarks/tabular/shards.py adult --epsilon 1

Rows are drawn from each site's generator in proportion to its patients, whose exact number a real pool would not know. The summed run over the same
deal stands beside. Sites that share no patient may each spend the whole budget.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from federated import AFTER, FILES, ROOT, deal, split

from evaluation import fidelity, utility
from medsynx import codec
from medsynx.bundle import read_bundle
from medsynx.samplers import bundle_sampler
from medsynx.study import Study, load_study, parse_study
from medsynx.target import target
from onehost.simulate import simulate


def rows_of(raw: dict[str, Any], tables: list[pd.DataFrame], rows: int, seed: int) -> np.ndarray:
    """Synthetic codes of one run over these tables."""
    study = parse_study({**raw, "rounds": {**raw["rounds"], "quorum": len(tables)}})
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.csv" for k in range(len(tables))]
        for table, file in zip(tables, files, strict=True):
            table.to_csv(file, index=False)
        found = simulate(study, files, Path(folder) / "run")
        return bundle_sampler(read_bundle(Path(found["bundle"]))).sample(rows, np.random.default_rng(seed))


def one(raw: dict[str, Any], name: str, data: Path, sites: int, seed: int) -> dict[str, Any]:
    study = parse_study(raw)
    rng = np.random.default_rng(seed)
    train, holdout = split(study, name, data, rng)
    parts = deal(train, study, name, sites, rng)
    alone = [rows_of(_told(raw, len(p)), [p], len(p), seed) for p in parts]
    real, held = codec.encode(train, study)[0], codec.encode(holdout, study)[0]
    summed = rows_of(raw, parts, len(real), seed)
    return {
        "seed": seed,
        "sites": len(parts),
        "pooled": judge(study, name, np.concatenate(alone), real, held),
        "summed": judge(study, name, summed, real, held),
    }


def _told(raw: dict[str, Any], patients: int) -> dict[str, Any]:
    """The study with the number of patients that its one site expects, to two digits: the schedule it would choose for itself."""
    family = {
        **raw["family"],
        "parameters": {**raw["family"]["parameters"], "patients": max(20, int(float(f"{patients:.1e}")))},
    }
    return {**raw, "family": family}


def judge(study: Study, name: str, rows: np.ndarray, real: np.ndarray, held: np.ndarray) -> dict[str, float | None]:
    task = target(study)
    assert task is not None
    names = list(study.data_columns)
    fair = tuple(j for j in task.predictors if names[j] not in AFTER.get(name, ()))
    return {
        "tvd2": fidelity.mean_tvd2(real, rows, codec.sizes(study)),
        "auc": utility.auc(study, replace(task, predictors=fair), rows, held)[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=FILES)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    raw = load_study(ROOT / "configs" / "studies" / f"{options.study}.yaml").model_dump(mode="json")
    raw["evaluation"]["federated"] = False
    raw["privacy"] |= {"epsilon": options.epsilon}
    data = Path(os.environ["MEDSYNX_DATA"])
    runs = [one(raw, options.study, data, options.sites, seed) for seed in range(options.seeds)]
    median = {
        how: {k: round(statistics.median(r[how][k] for r in runs), 4) for k in ("tvd2", "auc")}
        for how in ("pooled", "summed")
    }
    print(json.dumps({"study": options.study, "epsilon": options.epsilon, "median": median, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
