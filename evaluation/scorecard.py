"""A naive Bayes scorecard: one weight a code, added up. It is learned from counts alone, so it can be learned from a noised secure sum too.

The federated evaluation uses this learner for both sides, synthetic and real, so that the two AUCs are comparable; it is weaker than
gradient boosting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsynx.codec import Codes
from medsynx.target import Target

BINS = 16
SPAN = 4.0  #: scores beyond +-SPAN share the outer bins; public


def class_tables(
    codes: Codes, sizes: Sequence[int], task: Target, weights: NDArray[np.float64] | None = None
) -> list[NDArray[np.float64]]:
    """Counts (class x code) of each predictor, shape (2, codes of the predictor); rows without a class are left out.

    A row counts its weight, 1 when omitted.
    """
    y = task.classes(codes)
    kept = y >= 0
    weights = None if weights is None else weights[kept]
    return [
        np.bincount(y[kept] * sizes[j] + codes[kept, j], weights, minlength=2 * sizes[j]).reshape(2, -1).astype(float)
        for j in task.predictors
    ]


def weights(tables: Sequence[NDArray[np.float64]], noise_std: float = 0.0) -> NDArray[np.float64]:
    """Log odds of each code, predictors one after the other; shape (sum of their sizes,).

    Noise is met by smoothing: every cell gets the same head start of the size of the noise, and negative counts count as none.
    """
    out = []
    for table in tables:
        cells = np.maximum(table, 0) + 1.0 + noise_std
        rates = cells / cells.sum(axis=1, keepdims=True)
        out.append(np.log(rates[1] / rates[0]))
    return np.concatenate(out)


def score_bins(codes: Codes, sizes: Sequence[int], task: Target, card: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each row's score in one of :data:`BINS` public bins."""
    offsets = np.concatenate([[0], np.cumsum([sizes[j] for j in task.predictors])[:-1]]).astype(int)
    return binned(card[codes[:, task.predictors] + offsets].sum(axis=1))


def binned(score: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each score's public bin. What is no number, from weights that overflow on this row, counts as 0: no row may make a site fail."""
    inside = np.clip(np.nan_to_num(score, nan=0.0), -SPAN, SPAN)
    return np.minimum(np.floor((inside + SPAN) / (2 * SPAN) * BINS), BINS - 1).astype(np.int64)


def auc(histogram: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve from a (class x bin) histogram, ties counted half; None when a class is empty.

    Noised bins enter as they are: the area is bilinear in the two classes, whose noise is independent, so numerator and denominator stay
    unbiased; clipped bins would pull it towards one half. Noise may carry the area out of 0..1.
    """
    against, event = histogram
    if against.sum() <= 0 or event.sum() <= 0:
        return None
    below = np.concatenate([[0], np.cumsum(against)[:-1]])
    return float((event * (below + against / 2)).sum() / (against.sum() * event.sum()))
