"""Whether a generator repeats its training patients: are they nearer to the synthetic images than patients it never saw?

A membership test with public bins: each patient's distance to the nearest synthetic image, as a histogram of training and of hold-out patients.
Without memorisation the two are samples of one distribution. The advantage, 2 AUC - 1, is the chance that a training patient is the nearer of a
pair less the chance of the opposite; a generator that copies some of its patients, and else does well, has about their share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import scorecard

BINS = 8  #: few: each takes noise
NEAREST, WIDEST = (
    1 / 16,
    1.0,
)  #: the outer bins hold everything below and above; distances of two synthetic images are 1
NEAR = 1 / 8  #: what the report calls near; a border of bins
DRAWS = 300  #: of the known noise and of the patients, for spreads


def binned(distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each distance's public bin, equal on a scale of factors. What is no number has one too."""
    with np.errstate(all="ignore"):
        place = BINS * np.log(distance / NEAREST) / np.log(WIDEST / NEAREST)
    return np.clip(np.nan_to_num(np.floor(place), nan=0.0), 0, BINS - 1).astype(np.int64)


def count(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The histogram of these distances, one image a patient."""
    return np.bincount(binned(distance), minlength=BINS).astype(float)


def edges() -> list[float]:
    """Borders of the bins, one more than there are."""
    return [round(float(e), 4) for e in np.geomspace(NEAREST, WIDEST, BINS + 1)]


def figure(
    train: NDArray[np.float64], holdout: NDArray[np.float64], stds: tuple[float, float] = (0.0, 0.0)
) -> dict[str, Any]:
    """The advantage from two (noised) histograms.

    ``plus_minus`` is one standard deviation over draws of the noise and of the patients, ``resolution`` what 19 of 20 draws without any
    memorisation stay under. Not ``reliable`` above a spread of 0.1.

    Args:
        train, holdout: patients by bin.
        stds: of the noise in a bin of either.
    """
    rng, seen = np.random.default_rng(0), (train, holdout)
    if any(h.sum() <= max(1.0, 3 * std * np.sqrt(BINS)) for h, std in zip(seen, stds, strict=True)):
        return {"value": None, "why": "noise hides how many patients there are", "reliable": False}
    shares = [np.maximum(h, 0) / np.maximum(h, 0).sum() for h in seen]
    same = np.maximum(train + holdout, 0)
    again = [_drawn(seen, shares, stds, rng) for _ in range(DRAWS)]
    blind = [_drawn(seen, [same / same.sum()] * 2, stds, rng) for _ in range(DRAWS)]
    spread = float(np.std([_advantage(*pair) for pair in again]))
    return {
        "value": min(1.0, max(0.0, _advantage(*seen))),
        "plus_minus": spread,
        "resolution": max(0.0, float(np.quantile([_advantage(*pair) for pair in blind], 0.95))),
        "reliable": spread <= 0.1,
        "near": NEAR,
        "train_near": min(1.0, max(0.0, _near(train))),
        "holdout_near": min(1.0, max(0.0, _near(holdout))),
        "near_plus_minus": float(np.std([_near(a) - _near(b) for a, b in again])),
        "histogram": {"edges": edges(), "train": _rounded(shares[0]), "holdout": _rounded(shares[1])},
    }


def _advantage(train: NDArray[np.float64], holdout: NDArray[np.float64]) -> float:
    area = scorecard.auc(np.stack([train, holdout]))
    return 1.0 if area is None else 2 * area - 1  # without a count nothing speaks against the worst


def _near(histogram: NDArray[np.float64]) -> float:
    below = round(BINS * np.log(NEAR / NEAREST) / np.log(WIDEST / NEAREST))
    return float(histogram[:below].sum() / max(histogram.sum(), 1.0))


def _drawn(
    seen: tuple[NDArray[np.float64], ...],
    shares: list[NDArray[np.float64]],
    stds: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both histograms once more: as many patients with these shares, and the noise."""
    train, holdout = (
        rng.multinomial(round(float(h.sum())), share) + rng.normal(0, std, BINS)
        for h, share, std in zip(seen, shares, stds, strict=True)
    )
    return train, holdout


def _rounded(shares: NDArray[np.float64]) -> list[float]:
    return [round(float(s), 4) for s in shares]
