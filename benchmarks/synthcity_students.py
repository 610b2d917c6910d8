"""Trains every student plugin once on 1,000 rows of a small made-up table with five iterations; one line a plugin.

    python benchmarks/synthcity_students.py [PLUGIN ...]

Each runs in a process of its own, as in a study; most of its seconds are the import of Synthcity. `tvd2` is the mean 2-way distance to those rows.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evaluation.fidelity import mean_tvd2
from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators.synthcity.catalogue import STUDENTS
from medsynx.generators.synthcity.student import _survival, run_child
from medsynx.samplers import open_sampler
from medsynx.study import parse_study

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conftest import RAW_STUDY, small_table


def main() -> None:
    raw = copy.deepcopy(RAW_STUDY)
    raw["columns"]["marker"]["role"], raw["columns"]["ill"]["role"] = "survival_time", "event"
    study = parse_study(raw)
    rows, sizes = codec.encode(small_table(1000, 0), study)[0], codec.sizes(study)
    for plugin in sys.argv[1:] or STUDENTS:
        job = {"plugin": plugin, "iterations": 5, "rows": 1000, "sizes": sizes, "seed": 3}
        job["survival"], began = _survival(study, rows), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                made, latent = run_child(Path(folder), rows, job, 600)
            except MedsynxError as error:
                print(f"{plugin}: {time.monotonic() - began:.0f} s, refused: {error}", flush=True)
                continue
        kind = {"kind": "onnx-softmax", "latent": latent} if latent else {"kind": "parquet-pool"}
        drawn = open_sampler({**kind, "file": "x"}, {"x": made}, study).sample(1000, np.random.default_rng(0))
        far = mean_tvd2(drawn, rows, sizes)
        print(
            f"{plugin}: {time.monotonic() - began:.0f} s, {kind['kind']}, {len(made):,} bytes, tvd2 {far:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
