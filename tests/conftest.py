"""Shared by every room's tests: a small study and a correlated table made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from medsynx.study import Study, parse_study

# What is slow on a busy machine is not wrong: an example that takes 200 ms, or examples that are slow to make, fail no test.
settings.register_profile("busy", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

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


RAW_IMAGE_STUDY = {
    "manifest": 1,
    "name": "stripes",
    "image": {"shape": [12, 12, 1], "intensity": [0, 255], "classes": ["flat", "upright"]},
    "family": {"name": "moments", "parameters": {"frequencies": 4}},
    "privacy": {"epsilon": 4.0, "delta": 1e-5},
    "rounds": {"quorum": 2, "deadline_seconds": 60},
    "evaluation": {"federated": False},
}


def stripes(images: int, seed: int, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Grey stripes of any phase, lying (0) or standing (1): uint8 images and their labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    wave = np.sin(np.arange(size) * 12 / size * 0.9 + rng.uniform(0, 2, (images, 1)))
    lying = np.repeat((110 + 80 * wave)[:, :, None], size, axis=2) + rng.normal(0, 8, (images, size, size))
    pixels = np.where(label[:, None, None] == 1, lying.transpose(0, 2, 1), lying)
    return np.clip(pixels, 0, 255).astype(np.uint8), label


@pytest.fixture
def image_study() -> Study:
    """The stripes study, parsed."""
    return parse_study(RAW_IMAGE_STUDY)
