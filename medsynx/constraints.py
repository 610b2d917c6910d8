"""What no record can be: impossible combinations of values, and columns that never exceed others, as masks over codes.

Both come from the study, so they are public and cost nothing: the estimator gives an impossible cell no mass, and no synthetic row falls in one.
Real records that break a constraint are still counted in the tables they belong to.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators.graphical.junction_tree import IMPOSSIBLE, JunctionTree, Scope, tree_cells
from medsynx.study import DateColumn, ImpossibleConstraint, LevelColumn, NumericColumn, Study

MAX_CELLS = 60_000


def masks(study: Study) -> dict[Scope, NDArray[np.float64]]:
    """For each set of constrained columns the log potential of its cells: 0, or ``IMPOSSIBLE``.

    Raises:
        MedsynxError: ``condition-invalid`` for a level or range that the dictionary does not have.
    """
    sizes, names = codec.sizes(study), list(study.data_columns)
    found: list[tuple[Scope, NDArray[np.bool_]]] = []
    for constraint in study.constraints:
        if isinstance(constraint, ImpossibleConstraint):
            chosen = codec.allowed(dict(constraint.impossible), study)
            scope = tuple(sorted(chosen))
            hit = np.ones([sizes[a] for a in scope], bool)
            for axis, a in enumerate(scope):
                hit &= chosen[a].reshape([-1 if k == axis else 1 for k in range(len(scope))])
            found.append((scope, hit))
    for first, second in study.orders:
        a, b = names.index(first), names.index(second)
        above = _above(study, first, second)
        found.append(((a, b), above) if a < b else ((b, a), above.T))
    out: dict[Scope, NDArray[np.float64]] = {}
    for scope, hit in found:
        mask = np.where(hit, IMPOSSIBLE, 0.0)
        out[scope] = np.minimum(out[scope], mask) if scope in out else mask
    return out


def _above(study: Study, first: str, second: str) -> NDArray[np.bool_]:
    """Which pairs of codes say that the first column's value is above the second's, whatever the values within their bins."""
    low, high = (_ends(study.data_columns[n]) for n in (first, second))
    return np.array([[a is not None and b is not None and a[0] > b[1] for b in high] for a in low])


def _ends(column: object) -> list[tuple[float, float] | None]:
    """Smallest and largest value of each code; None for ``other`` and ``missing``, which are above nothing."""
    if isinstance(column, LevelColumn):
        return [(float(k), float(k)) for k in range(len(column.levels))] + [None, None]
    assert isinstance(column, NumericColumn | DateColumn)
    offset = column.origin.toordinal() if isinstance(column, DateColumn) else 0
    cuts = np.asarray(column.cuts) + offset
    whole = isinstance(column, DateColumn) or column.integer
    ends: list[tuple[float, float] | None] = []
    for k in range(len(cuts) - 1):
        last = k == len(cuts) - 2
        top = cuts[k + 1] if last else math.ceil(cuts[k + 1]) - 1 if whole else np.nextafter(cuts[k + 1], -np.inf)
        ends.append((math.ceil(cuts[k]) if whole else float(cuts[k]), float(top)))
    return [*ends, None]


def problems(study: Study) -> list[str]:
    """Sentences on constraints that cannot hold: unknown levels, too wide, or contradicting. Empty when all is well."""
    try:
        found = masks(study)
    except MedsynxError as error:
        return [f"constraints: {error.message}"]
    sizes, names = codec.sizes(study), list(study.data_columns)
    if not found:
        return []
    if tree_cells(sizes, found) > MAX_CELLS:
        return ["constraints: together they tie too many columns; use fewer columns or coarser bins"]
    for first, second in study.orders:
        a, b = (codec.values(study.data_columns[n]) for n in (first, second))
        if _above(study, first, second)[:a, :b].all():
            return [
                f"constraints: they contradict the dictionary: every value of {first} is above every value of {second}"
            ]
    tree = JunctionTree(sizes, found)
    log = [np.zeros(s) for s in tree.shapes]
    for scope, mask in found.items():
        home = tree.home(scope)
        assert home is not None
        log[home] = log[home] + mask.reshape(tree.broadcast(home, scope))
    marginals, _, log_z = tree.calibrate(log)
    if log_z < IMPOSSIBLE / 2:
        return ["constraints: they contradict each other: no record at all is possible"]
    out = []
    for a in sorted({a for scope in found for a in scope}):
        home = tree.home((a,))
        assert home is not None
        values = marginals[home].sum(axis=tree.outside(home, (a,)))[: codec.values(study.data_columns[names[a]])]
        if not (values > 0).any():
            out.append(f"constraints: they contradict each other: no value of {names[a]} is left")
    return out


def respected(codes: codec.Codes, study: Study) -> NDArray[np.bool_]:
    """Whether each row breaks no constraint. Shape (rows,)."""
    good = np.ones(len(codes), bool)
    for scope, mask in masks(study).items():
        good &= mask[tuple(codes[:, a] for a in scope)] == 0
    return good
