"""Synthcity's own plugin `dpgan` as it is shipped, on one pooled table with the cells of our dictionary. JSON out.

    MEDSYNX_DATA=... python benchmarks/tabular/synthcity_dpgan.py flchain --epsilon 1 --epochs 5

Its epsilon does not hold (docs/synthcity.md): the figure says what a user of that plugin gets. Every column is given as categories, so that its
encoder has nothing to fit. Everything but the epochs is its default; the default of 2,000 epochs would take weeks on one core.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pandas as pd
from aim import split

from evaluation import fidelity, utility
from medsynx import codec
from medsynx.target import target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    study, train, holdout = split(options.study, options.seed)
    task = target(study)
    assert task is not None
    from synthcity.plugins import Plugins
    from synthcity.plugins.core.dataloader import GenericDataLoader

    frame = pd.DataFrame(train, columns=[f"c{k}" for k in range(train.shape[1])]).astype(str)
    began, cpu = time.monotonic(), time.process_time()
    plugin = Plugins().get("dpgan", epsilon=options.epsilon, delta=study.privacy.delta, n_iter=options.epochs)
    plugin.fit(GenericDataLoader(frame, target_column=f"c{task.column}"))
    rows = plugin.generate(count=len(train)).dataframe()[frame.columns].to_numpy().astype(np.int64)
    print(
        json.dumps(
            {
                "study": options.study,
                "claimed_epsilon": options.epsilon,
                "epochs": options.epochs,
                "tvd2": fidelity.mean_tvd2(train, rows, codec.sizes(study)),
                "auc": utility.auc(study, task, rows, holdout)[0],
                "seconds": round(time.monotonic() - began, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
