"""The reference beside us: AIM (McKenna et al. 2022) as its authors publish it, on one pooled table with the cells of our dictionary. JSON out.

    MEDSYNX_DATA=... python benchmarks/tabular/aim.py export adult --seed 0 codes.npz
    PRIVATE_PGM=... python-with-jax benchmarks/tabular/aim.py run codes.npz rows.npz --epsilon 1
    MEDSYNX_DATA=... python benchmarks/tabular/aim.py score adult --seed 0 rows.npz

``PRIVATE_PGM`` is a checkout of the repository private-pgm (mbi 1.0.0 with its ``mechanisms``, which no package has); it needs an environment of its
own with jax (0.4.38 was used). AIM sees all rows at once and chooses each table by the exponential mechanism: what no federation can do without a
trusted party. Its model may be as large as ours: 60,000 cells of 8 bytes; everything else is its default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

CELLS_MEGABYTES = 60_000 * 8 / 2**20


def split(name: str, seed: int):
    """The hold-out of ``federated.py``'s seed: study, training rows, hold-out."""
    import federated

    from medsynx import codec
    from medsynx.study import load_study

    study = load_study(federated.ROOT / "configs" / "studies" / f"{name}.yaml")
    parts = federated.split(study, name, Path(os.environ["MEDSYNX_DATA"]), np.random.default_rng(seed))
    return study, *(codec.encode(part, study)[0] for part in parts)


def export(options: argparse.Namespace) -> None:
    from medsynx import codec

    study, train, _ = split(options.study, options.seed)
    np.savez(options.codes, codes=train, sizes=codec.sizes(study), delta=study.privacy.delta)


def run(options: argparse.Namespace) -> None:
    home = Path(os.environ["PRIVATE_PGM"])
    sys.path[:0] = [str(home / "src"), str(home / "mechanisms")]
    from aim import AIM
    from mbi import Dataset, Domain

    held = np.load(options.codes)
    codes, sizes = held["codes"], held["sizes"]
    names = [f"c{k}" for k in range(len(sizes))]
    domain = Domain(names, [int(s) for s in sizes])
    columns = {n: codes[:, k].astype(np.int64) for k, n in enumerate(names)}
    try:
        data = Dataset(columns, domain)
    except Exception:  # the package took a table before
        import pandas as pd

        data = Dataset(pd.DataFrame(columns), domain)
    workload = [(pair, 1.0) for pair in itertools.combinations(names, 2)]
    began = time.monotonic()
    mechanism = AIM(options.epsilon, float(held["delta"]), max_model_size=CELLS_MEGABYTES, max_iters=options.iterations)
    _, synthetic = mechanism.run(data, workload, num_synth_rows=len(codes))
    rows = synthetic.df if hasattr(synthetic, "df") else synthetic.to_dict()
    np.savez(
        options.rows,
        rows=np.stack([np.asarray(rows[n]) for n in names], axis=1).astype(np.int64),
        seconds=time.monotonic() - began,
        cpu=time.process_time(),
    )


def score(options: argparse.Namespace) -> None:
    from evaluation import fidelity, utility
    from medsynx import codec
    from medsynx.target import target

    study, train, holdout = split(options.study, options.seed)
    held = np.load(options.rows)
    task = target(study)
    assert task is not None
    figures = {
        "tvd2": fidelity.mean_tvd2(train, held["rows"], codec.sizes(study)),
        "auc": utility.auc(study, task, held["rows"], holdout)[0],
    }
    print(json.dumps({**figures, "seconds": float(held["seconds"]), "cpu_seconds": float(held["cpu"])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one, two, three = (verbs.add_parser(v) for v in ("export", "run", "score"))
    for verb in (one, three):
        verb.add_argument("study")
        verb.add_argument("--seed", type=int, default=0)
    one.add_argument("codes", type=Path)
    two.add_argument("codes", type=Path)
    for verb in (two, three):
        verb.add_argument("rows", type=Path)
    two.add_argument("--epsilon", type=float, required=True)
    two.add_argument("--iterations", type=int, default=1000)
    for verb, job in ((one, export), (two, run), (three, score)):
        verb.set_defaults(job=job)
    options = parser.parse_args()
    options.job(options)


if __name__ == "__main__":
    main()
