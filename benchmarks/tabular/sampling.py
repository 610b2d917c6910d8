"""Rows per CPU second from a released bundle, drawn as codes, under a condition, and as a decoded table. JSON out.

python benchmarks/tabular/sampling.py BUNDLE
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from medsynx import codec
from medsynx.bundle import read_bundle
from medsynx.generators.graphical.sample import CliqueTreeSampler
from medsynx.samplers import bundle_sampler

ROWS, TIMES = 1_000_000, 5


def main() -> None:
    bundle = read_bundle(Path(sys.argv[1]))
    sampler, study = bundle_sampler(bundle), bundle.study
    assert isinstance(sampler, CliqueTreeSampler)
    last = len(study.data_columns) - 1
    mask = np.arange(sampler.sizes[last]) == 1
    given = sampler.given({last: mask})
    seconds: dict[str, list[float]] = {"codes": [], "codes given the last column": [], "decoded table": []}
    for k in range(TIMES):
        began = time.process_time()
        codes = sampler.sample(ROWS, np.random.default_rng(k))
        seconds["codes"].append(time.process_time() - began)
        began = time.process_time()
        given.sample(ROWS, np.random.default_rng(k))
        seconds["codes given the last column"].append(time.process_time() - began)
        began = time.process_time()
        codec.decode(codes, study, np.random.default_rng(k))
        seconds["decoded table"].append(seconds["codes"][-1] + time.process_time() - began)
    million = {k: round(ROWS / statistics.median(v) / 1e6, 2) for k, v in seconds.items()}
    cells = sum(t.table.size for t in sampler.tables)
    size = len(bundle.files["artefact/tables.npz"])
    print(
        json.dumps(
            {
                "study": study.name,
                "columns": last + 1,
                "cells": cells,
                "bytes": size,
                "million_rows_a_cpu_second": million,
            }
        )
    )


if __name__ == "__main__":
    main()
