"""A study over skewed sites with the programme's own door and noise: distances and AUC against a hold-out, bytes and seconds. JSON out.

    MEDSYNX_DATA=... python benchmarks/tabular/federated.py adult --epsilon 1 --sites 10
    ... --trust local      each site adds the full noise
    ... --sites 1          a central run of the same mechanism
    ... --family dp-gan --parameters '{"gradients": "summed"}'     another family; add --no-noise to see what noise costs (not private)

A fifth of the patients is held out before anything is dealt; the rest all train (`evaluation.federated: false`). Noise comes from the operating
system and is never seeded: a seed fixes the hold-out, the deal and the classifier's rows, so that figures of one seed differ from run to run by the
noise alone. Distances are those of as many synthetic rows as there are training rows. `auc` leaves out what is known only after the outcome.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import fidelity, utility
from medsynx import codec
from medsynx.bundle import read_bundle
from medsynx.samplers import bundle_sampler
from medsynx.study import Study, load_study, parse_study
from medsynx.tables import read_table
from medsynx.target import target
from onehost.simulate import simulate

ROOT = Path(__file__).parents[2]
FILES = {
    "adult": "adult.csv",
    "flchain": "flchain.csv",
    "heart": "heart_disease/heart_disease.csv",
    "support2": "support2.csv",
    "diabetes130": "diabetes130_half.csv",
    "nhefs": "nhefs.csv",
    "thyroid": "thyroid.csv",
}
REAL_SITES = {"heart": "hospital"}
#: Measured at or after the outcome: a classifier that sees them predicts nothing.
AFTER = {
    "support2": ("slos", "charges", "totcst", "totmcst", "avtisst", "dnr", "dnrday", "sfdm2", "adlsc", "adlp", "adls")
}


def deal(frame: pd.DataFrame, study: Study, name: str, sites: int, rng: np.random.Generator) -> list[pd.DataFrame]:
    """The real hospitals where the set names them; else sizes from a flat Dirichlet and, within a class, shares from a Dirichlet of one half."""
    if name in REAL_SITES and sites > 1:
        return [part for _, part in frame.groupby(REAL_SITES[name])]
    if sites == 1:
        return [frame]
    label = frame[study.by_role("target")]
    by = frame[study.patient_id] if study.patient_id else pd.Series(frame.index, index=frame.index)
    first = label.groupby(by).transform("first")
    size = np.maximum(rng.dirichlet(np.ones(sites)), 0.01)
    home: dict[Any, int] = {}
    for _, patients in by.groupby(first):
        share = size * rng.dirichlet(np.full(sites, 0.5)) + 1e-3
        unique = patients.unique()
        home |= dict(zip(unique, rng.choice(sites, len(unique), p=share / share.sum()), strict=True))
    at = by.map(home)
    return [frame[at == k] for k in range(sites) if (at == k).sum() >= 20]


def split(study: Study, name: str, data: Path, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows and the hold-out: a fifth of the patients."""
    frame = read_table(data / "tabular" / FILES[name])
    ids = frame[study.patient_id] if study.patient_id else pd.Series(frame.index, index=frame.index)
    unique = ids.unique()
    kept = ids.isin(set(rng.permutation(unique)[: round(0.8 * len(unique))]))
    return frame[kept], frame[~kept]


def one(
    raw: dict[str, Any], name: str, data: Path, sites: int, seed: int, tables: Path | None, noise: bool
) -> dict[str, Any]:
    """One run of a study given as a mapping."""
    study = parse_study(raw)
    rng = np.random.default_rng(seed)
    train, holdout = split(study, name, data, rng)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        parts = deal(train, study, name, sites, rng)
        # Everybody answers in a simulation, so the quorum is every site: the noise is split among all and none is added twice.
        study = parse_study({**raw, "rounds": {**raw["rounds"], "quorum": len(parts)}})
        files = [out / f"{k}.csv" for k in range(len(parts))]
        for part, file in zip(parts, files, strict=True):
            part.to_csv(file, index=False)
        holdout.to_csv(out / "holdout.csv", index=False)
        began, cpu = time.monotonic(), time.process_time()
        found = simulate(study, files, out / "run", holdout=out / "holdout.csv", seed=seed, noise=noise)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        bundle = read_bundle(Path(found["bundle"]))
        if tables:
            tables.write_bytes(Path(found["bundle"]).read_bytes())
    task, figures = target(study), found["figures"]["direct"]
    assert task is not None
    names = list(study.data_columns)
    fair = tuple(j for j in task.predictors if names[j] not in AFTER.get(name, ()))
    real, held = codec.encode(train, study)[0], codec.encode(holdout, study)[0]
    synthetic = bundle_sampler(bundle).sample(len(real), np.random.default_rng(seed))
    auc, real_auc = (utility.auc(study, replace(task, predictors=fair), rows, held)[0] for rows in (synthetic, real))
    rounds = bundle.json("rounds.json")["rounds"]
    return {
        "seed": seed,
        "sites": found["sites"],
        "patients": found["patients"],
        "epsilon": found["epsilon"],
        **{k: figures[k]["value"] for k in ("tvd1", "tvd2")},
        "tvd2_holdout": figures["tvd2"]["floor"],
        "tvd2_independent": fidelity.mean_tvd2(independent(real, seed), real, codec.sizes(study)),
        "auc": auc,
        "auc_real": real_auc,
        "kilobytes": {r["step"]: round(r["bytes_per_site"] / 1024, 1) for r in rounds[:4]},
        "kilobytes_all": round(sum(r["bytes_per_site"] for r in rounds) / 1024, 1),
        "rounds": len(rounds),
        "run_seconds": found["seconds"],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "notes": found["notes"],
    }


def independent(codes: codec.Codes, seed: int) -> codec.Codes:
    """The rows with each column shuffled by itself: right columns, no relations."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(column) for column in codes.T], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=FILES)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--trust", default="secure-sum")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--family", help="instead of the study's own")
    parser.add_argument("--parameters", type=json.loads, default={}, help="of that family, as JSON")
    parser.add_argument("--no-noise", action="store_true", help="nothing made so is private")
    parser.add_argument("--bundle", type=Path, help="keep the last bundle here")
    options = parser.parse_args()
    raw = load_study(ROOT / "configs" / "studies" / f"{options.study}.yaml").model_dump(mode="json")
    raw["evaluation"]["federated"] = False
    raw["privacy"] |= {"trust": options.trust, "epsilon": options.epsilon or raw["privacy"]["epsilon"]}
    if options.family:
        raw["family"] = {"name": options.family, "parameters": options.parameters}
    data, noise = Path(os.environ["MEDSYNX_DATA"]), not options.no_noise
    runs = [one(raw, options.study, data, options.sites, seed, options.bundle, noise) for seed in range(options.seeds)]
    figures = ("tvd1", "tvd2", "tvd2_holdout", "tvd2_independent", "auc", "auc_real", "run_seconds", "cpu_seconds")
    median = {k: round(statistics.median(r[k] for r in runs), 4) for k in figures}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    setting = {
        "study": options.study,
        "epsilon": raw["privacy"]["epsilon"],
        "sites": options.sites,
        "trust": options.trust,
        "noise": noise,
        "family": raw["family"],
    }
    print(json.dumps({**setting, "median": median, "peak_megabytes": peak, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
