"""A lower bound on epsilon from repeated runs on two neighbouring tables: what an attacker with the best test achieved, minus luck.

Jagielski, Ullman, Oprea 2020 (Auditing Differentially Private Machine Learning), with exact binomial limits (Clopper and Pearson 1934).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

CONFIDENCE = 0.999  # of all limits on one side together


def epsilon_lower_bound(without: NDArray[np.float64], with_: NDArray[np.float64], delta: float) -> float:
    """The largest epsilon the runs refute.

    A few thresholds are chosen on the first half of the runs and all of them judged on the second, each limit with its part of the error: a single
    choice, now and then an unlucky one, would miss a fault that is there.

    Args:
        without, with_: the attacker's score of each run without and with the canary patient; higher means "with".
        delta: of the claim.

    Returns:
        0 when nothing can be told apart.
    """
    return max(_one_sided(without, with_, delta), _one_sided(-with_, -without, delta))


def _one_sided(low: NDArray[np.float64], high: NDArray[np.float64], delta: float) -> float:
    thresholds = _thresholds(low[: len(low) // 2], high[: len(high) // 2])
    error = (1 - CONFIDENCE) / max(1, len(thresholds))
    judged = low[len(low) // 2 :], high[len(high) // 2 :]
    return max([0.0, *(_bound(*judged, t, delta, error) for t in thresholds)])


def _thresholds(low: NDArray[np.float64], high: NDArray[np.float64]) -> list[float]:
    """For 0, 1, 2, 4, ... false alarms among ``low``: the middle between the next false alarm and the lowest of ``high`` that is caught.

    Where some of ``high`` look like ``low`` (a canary that joined no batch), a few of these lie above all of ``low`` by luck, and drag the threshold
    to where false alarms are. One more threshold lets the lowest tenth of what is caught go.
    """
    descending, found = np.sort(low)[::-1], set[float]()
    for allowed in (0, *(2**k for k in range(len(low).bit_length() - 1))):
        caught = np.sort(high[high > descending[allowed]])
        if len(caught):
            found.add(float(descending[allowed] + caught[0]) / 2)
        if not allowed and 10 <= len(caught) < len(high):
            found.add(float(descending[0] + caught[len(caught) // 10]) / 2)
    return sorted(found)


def _bound(low: NDArray[np.float64], high: NDArray[np.float64], threshold: float, delta: float, error: float) -> float:
    false, true = int((low >= threshold).sum()), int((high >= threshold).sum())
    most_false = float(beta.ppf(1 - error, false + 1, len(low) - false)) if false < len(low) else 1.0
    least_true = float(beta.ppf(error, true, len(high) - true + 1)) if true else 0.0
    return float(np.log(max(least_true - delta, 1e-12) / most_false))
