"""Kaplan-Meier curves on coded tables, and how far two sets of records are apart in survival."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import LevelColumn, Study


def curves(codes: Codes, study: Study) -> list[NDArray[np.float64]]:
    """Survival at the end of each bin of the follow-up time, one curve a treatment (one for all without a treatment column).

    Kaplan and Meier 1958 on the study's time grid: who is censored within a bin counts as at risk in it. Records without a time, or whose event is
    neither of the two, are left out. A treatment nobody has gives a curve of ones.
    """
    names = list(study.data_columns)
    time, event, *treatment = (names.index(n) for n in study.survival)
    bins = codec.values(study.data_columns[names[time]])
    column = study.data_columns[names[event]]
    levels = column.levels if hasattr(column, "levels") else ()
    named = column.positive if isinstance(column, LevelColumn) and column.positive else levels[1:]
    happened = np.isin(codes[:, event], [levels.index(v) for v in named])
    known = (codes[:, time] < bins) & (codes[:, event] < len(levels))
    arms = range(codec.values(study.data_columns[names[treatment[0]]])) if treatment else [None]
    out = []
    for arm in arms:
        here = known if arm is None else known & (codes[:, treatment[0]] == arm)
        ended = np.bincount(codes[here, time], minlength=bins)
        died = np.bincount(codes[here & happened, time], minlength=bins)
        at_risk = np.cumsum(ended[::-1])[::-1]
        out.append(np.cumprod(1 - died / np.maximum(at_risk, 1)))
    return out


def distance(a: Codes, b: Codes, study: Study) -> float:
    """Mean over treatments of the area between the two curves, as a share of the follow-up; 0 to 1."""
    column = study.data_columns[study.survival[0]]
    width = np.diff(column.cuts)  # type: ignore[union-attr]
    apart = [np.abs(x - y) @ width / width.sum() for x, y in zip(curves(a, study), curves(b, study), strict=True)]
    return float(np.mean(apart))


def judged(study: Study) -> bool:
    """Whether the study has a binned follow-up time and an event of levels."""
    if not study.survival:
        return False
    time, event = (study.data_columns[n] for n in study.survival[:2])
    return hasattr(time, "cuts") and hasattr(event, "levels")
