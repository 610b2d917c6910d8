"""Shared by every room's tests: a small study and a correlated table made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest

from medsynx.study import Study, parse_study

RAW_STUDY = {
    "manifest": 1,
    "name": "small",
    "title": "A small study",
    "columns": {
        "age": {"type": "numeric", "bounds": [18, 90], "bins": 6, "integer": True},
        "sex": {"type": "categorical", "levels": ["F", "M"]},
        "grade": {"type": "ordinal", "levels": ["1", "2", "3"]},
        "marker": {"type": "numeric", "bounds": [0, 10], "edges": [1, 2.5, 5]},
        "ill": {"type": "boolean", "levels": ["no", "yes"], "role": "target"},
    },
    "family": {"name": "marginals"},
    "privacy": {"epsilon": 2.0, "delta": 1e-5, "trust": "local"},
    "rounds": {"quorum": 2, "deadline_seconds": 60},
}


def small_table(rows: int, seed: int) -> pd.DataFrame:
    """Age drives grade and marker, both drive the target; some cells are missing. All text, as a CSV is read."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 91, rows)
    grade = np.clip((age - 18) // 25 + rng.integers(-1, 2, rows), 0, 2) + 1
    marker = np.clip(rng.gamma(2, 0.7, rows) + (grade - 1), 0, 10)
    ill = rng.random(rows) < 1 / (1 + np.exp(-(marker + 0.05 * age - 5)))
    frame = pd.DataFrame(
        {
            "age": age.astype(str),
            "sex": rng.choice(["F", "M"], rows),
            "grade": grade.astype(str),
            "marker": np.round(marker, 2).astype(str),
            "ill": np.where(ill, "yes", "no"),
        }
    )
    frame.loc[rng.random(rows) < 0.05, "marker"] = ""
    return frame


@pytest.fixture
def raw_study() -> dict:
    """The small study as a fresh mapping to edit."""
    import copy

    return copy.deepcopy(RAW_STUDY)


@pytest.fixture
def study(raw_study: dict) -> Study:
    """The small study, parsed."""
    return parse_study(raw_study)
