"""A lower bound on epsilon from repeated runs on two neighbouring tables: what an attacker with the best test achieved, minus luck.

Jagielski, Ullman, Oprea 2020 (Auditing Differentially Private Machine Learning), with exact binomial limits (Clopper and Pearson 1934).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

CONFIDENCE = 0.999  # of each limit; two limits hold for one bound


def epsilon_lower_bound(without: NDArray[np.float64], with_: NDArray[np.float64], delta: float) -> float:
    """The largest epsilon the runs refute.

    The threshold is chosen on the first half of the runs and judged on the second, so that choosing costs nothing.

    Args:
        without, with_: the attacker's score of each run without and with the canary patient; higher means "with".
        delta: of the claim.

    Returns:
        0 when nothing can be told apart.
    """
    return max(_one_sided(without, with_, delta), _one_sided(-with_, -without, delta))


def _one_sided(low: NDArray[np.float64], high: NDArray[np.float64], delta: float) -> float:
    choose_low, choose_high = low[: len(low) // 2], high[: len(high) // 2]
    judge_low, judge_high = low[len(low) // 2 :], high[len(high) // 2 :]
    bounds = [
        (_bound(choose_low, choose_high, t, delta), t) for t in np.unique(np.concatenate([choose_low, choose_high]))
    ]
    return max(0.0, _bound(judge_low, judge_high, max(bounds)[1], delta))


def _bound(low: NDArray[np.float64], high: NDArray[np.float64], threshold: float, delta: float) -> float:
    false, true = int((low >= threshold).sum()), int((high >= threshold).sum())
    most_false = float(beta.ppf(CONFIDENCE, false + 1, len(low) - false)) if false < len(low) else 1.0
    least_true = float(beta.ppf(1 - CONFIDENCE, true, len(high) - true + 1)) if true else 0.0
    return float(np.log(max(least_true - delta, 1e-12) / most_false))
