"""Kaplan-Meier curves on coded tables, and how far two sets of records are apart in survival."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import LevelColumn, Study


def counts(codes: Codes, study: Study, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Records by treatment, bin of the follow-up time and event (0 censored, 1 happened), shape (treatments, bins, 2).

    One treatment for all without a treatment column. Records without a time or treatment, or whose event is neither of the two, are left out. A
    record counts its weight, 1 when omitted.
    """
    names = list(study.data_columns)
    time, event, *treatment = (names.index(n) for n in study.survival)
    column = study.data_columns[names[event]]
    levels = column.levels if hasattr(column, "levels") else ()
    named = column.positive if isinstance(column, LevelColumn) and column.positive else levels[1:]
    happened = np.isin(codes[:, event], [levels.index(v) for v in named])
    arm = codes[:, treatment[0]] if treatment else np.zeros(len(codes), np.int64)
    arms, bins, _ = size = shape(study)
    known = (codes[:, time] < bins) & (codes[:, event] < len(levels)) & (arm < arms)
    cell = (arm * bins + codes[:, time]) * 2 + happened
    counted = None if weights is None else weights[known]
    return np.bincount(cell[known], counted, minlength=2 * arms * bins).astype(float).reshape(size)


def shape(study: Study) -> tuple[int, int, int]:
    """Of :func:`counts`."""
    time, _, *treatment = (codec.values(study.data_columns[n]) for n in study.survival)
    return (treatment[0] if treatment else 1, time, 2)


def curves(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Survival at the end of each bin, shape (treatments, bins), from :func:`counts`.

    Kaplan and Meier 1958 on the study's time grid: who is censored within a bin counts as at risk in it. A treatment nobody has gives a curve of
    ones. A noised table is read as it is but for hazards below 0 or above 1.
    """
    ended, died = table.sum(axis=2), table[:, :, 1]
    at_risk = np.cumsum(ended[:, ::-1], axis=1)[:, ::-1]
    hazard = np.divide(died, at_risk, out=np.zeros_like(died), where=at_risk > 0)
    return np.cumprod(1 - np.clip(hazard, 0, 1), axis=1)


def distance(a: NDArray[np.float64], b: NDArray[np.float64], study: Study) -> float:
    """Mean over treatments of the area between the curves of two tables, as a share of the follow-up; 0 to 1."""
    column = study.data_columns[study.survival[0]]
    width = np.diff(column.cuts)  # type: ignore[union-attr]
    return float(np.mean(np.abs(curves(a) - curves(b)) @ width / width.sum()))


def judged(study: Study) -> bool:
    """Whether the study has a binned follow-up time and an event of levels."""
    if not study.survival:
        return False
    time, event = (study.data_columns[n] for n in study.survival[:2])
    return hasattr(time, "cuts") and hasattr(event, "levels")
