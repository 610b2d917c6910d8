"""Total variation distances between coded tables. Numpy on codes; knows nothing of privacy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medsynx.codec import Codes

Counts = NDArray[np.float64]


def tvd(a: Counts, b: Counts) -> float:
    """Half the L1 distance of two tables after each is scaled to sum 1; 0 (same) to 1 (disjoint)."""
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def one_way(codes: Codes, sizes: Sequence[int], weights: Counts | None = None) -> list[Counts]:
    """Counts of each column's codes; a row counts its weight, 1 when omitted."""
    return [np.bincount(codes[:, j], weights, minlength=k).astype(float) for j, k in enumerate(sizes)]


def two_way(codes: Codes, sizes: Sequence[int], pair: tuple[int, int], weights: Counts | None = None) -> Counts:
    """Counts of a pair of columns, shape (cells,); weights as in :func:`one_way`."""
    a, b = pair
    return np.bincount(codes[:, a] * sizes[b] + codes[:, b], weights, minlength=sizes[a] * sizes[b]).astype(float)


def mean_tvd1(a: Codes, b: Codes, sizes: Sequence[int]) -> float:
    """Mean over the columns."""
    return float(np.mean([tvd(x, y) for x, y in zip(one_way(a, sizes), one_way(b, sizes), strict=True)]))


def pair_tvds(a: Codes, b: Codes, sizes: Sequence[int]) -> dict[tuple[int, int], float]:
    """Every pair of columns."""
    return {p: tvd(two_way(a, sizes, p), two_way(b, sizes, p)) for p in combinations(range(len(sizes)), 2)}


def mean_tvd2(a: Codes, b: Codes, sizes: Sequence[int]) -> float:
    """Mean over all pairs of columns; the 1-way mean when there is only one column."""
    return float(np.mean(list(pair_tvds(a, b, sizes).values()))) if len(sizes) > 1 else mean_tvd1(a, b, sizes)
