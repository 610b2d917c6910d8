"""Drawing from a junction tree's conditional tables, unconditionally or given any columns; numpy only.

Each clique holds ``P(its columns | separator with its parent)``. The chain rule splits it into one table a column, and an alias table (Walker 1977)
draws a column for all rows with two look-ups, so that a record costs well under a microsecond whatever the number of codes. The rows of a block
share the scatter evenly (:func:`_even`): each row follows the model, and the table of all of them is closer to it than independent rows would be.
Conditions are exact: evidence is collected up the tree, which leaves conditional tables of the conditioned distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medsynx.errors import MedsynxError
from medsynx.generators.graphical.junction_tree import Scope, Table

BLOCK = 1 << 16  #: rows drawn at once: the working arrays stay in the cache


@dataclass(frozen=True)
class CliqueTable:
    """``P(columns | given)`` of one clique.

    Attributes:
        columns: rising column positions, ``given`` included.
        given: those shared with the parent clique.
        parent: position of the parent in the list of tables, which is before this one; None for a root.
        table: one axis a column, in the order of ``columns``; sums to 1 over the columns that are not given.
    """

    columns: Scope
    given: Scope
    parent: int | None
    table: Table

    @property
    def new(self) -> Scope:
        """The columns this clique draws."""
        return tuple(a for a in self.columns if a not in self.given)

    @property
    def new_axes(self) -> tuple[int, ...]:
        """Their axes."""
        return tuple(i for i, a in enumerate(self.columns) if a not in self.given)


def check(tables: Sequence[CliqueTable], sizes: Sequence[int]) -> None:
    """Raise ValueError unless the tables form a tree over all columns with proper conditional distributions."""
    seen: set[int] = set()
    for j, t in enumerate(tables):
        if t.table.shape != tuple(sizes[a] for a in t.columns) or list(t.columns) != sorted(set(t.columns)):
            raise ValueError("a table does not have the shape of its columns")
        if t.parent is None:
            above: Scope = ()
        elif 0 <= t.parent < j:
            above = tables[t.parent].columns
        else:
            raise ValueError("a table comes before its parent")
        if not set(t.given) <= set(above) or not set(t.given) <= set(t.columns) or seen & set(t.new):
            raise ValueError("the tables are not a tree")
        if not np.isfinite(t.table).all() or (t.table < 0).any() or not (t.table.sum(axis=t.new_axes) > 0).all():
            raise ValueError("a table is not a distribution")
        seen |= set(t.new)
    if seen != set(range(len(sizes))):
        raise ValueError("the tables do not draw every column")


def condition(tables: Sequence[CliqueTable], allowed: Mapping[int, NDArray[np.bool_]]) -> list[CliqueTable]:
    """The tables of the distribution given that each named column takes one of its allowed codes.

    Args:
        allowed: column -> mask over its codes.

    Raises:
        MedsynxError: ``condition-invalid`` when the conditions have no probability together.
    """
    work = [t.table for t in tables]
    out = list(tables)
    for j in reversed(range(len(tables))):
        t, table = tables[j], work[j]
        for a in t.new:
            if a in allowed:
                axes = [1] * len(t.columns)
                axes[t.columns.index(a)] = -1
                table = table * allowed[a].reshape(axes)
        mass = table.sum(axis=t.new_axes, keepdims=True)
        reached = np.divide(
            table, mass, out=t.table.copy(), where=mass > 0
        )  # what is never reached stays a distribution
        out[j] = replace(t, table=reached)
        if t.parent is None:
            if not float(mass.sum()) > 0:
                raise MedsynxError("condition-invalid", "no synthetic record can meet these conditions together")
        else:
            parent = tables[t.parent]
            shape = [n if a in t.given else 1 for a, n in zip(parent.columns, parent.table.shape, strict=True)]
            work[t.parent] = work[t.parent] * mass.reshape(shape)
    return out


class CliqueTreeSampler:
    """Ancestral sampling; see :class:`medsynx.samplers.Sampler`."""

    def __init__(self, tables: Sequence[CliqueTable], sizes: tuple[int, ...]) -> None:
        check(tables, sizes)
        self.tables, self.sizes = list(tables), sizes
        self._steps = [step for t in tables for step in _chain(t)]

    def given(self, allowed: Mapping[int, NDArray[np.bool_]]) -> CliqueTreeSampler:
        """A sampler of the same distribution under conditions; see :func:`condition`."""
        return CliqueTreeSampler(condition(self.tables, allowed), self.sizes)

    def sample(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Codes of shape (rows, columns); the same generator state gives the same rows."""
        out = np.empty((len(self.sizes), rows), np.int64)
        for start in range(0, rows, BLOCK):
            block = out[:, start : start + BLOCK]
            for column, known, keep, other in self._steps:
                width = self.sizes[column]
                row = np.zeros(block.shape[1], np.int64)
                for a in known:
                    row *= self.sizes[a]
                    row += block[a]
                place = _even(row, len(keep) // width, rng) * width
                cell = np.minimum(place.astype(np.int64), width - 1)
                place -= cell  # uniform in 0..1, independent of the cell
                row *= width
                row += cell
                block[column] = np.where(place < keep.take(row), cell, other.take(row))
        return out.T


def _even(group: NDArray[np.int64], groups: int, rng: np.random.Generator) -> Table:
    """A number in 0..1 for each row: uniform, and spread evenly over 0..1 within each group of rows.

    Systematic sampling in random order (Cochran 1977, chapter 8): the g rows of a group get one number in each of g equal strata, so that their
    codes come out in the wanted proportions up to rounding instead of with the scatter of independent draws.
    """
    rows = len(group)
    shuffled = rng.permutation(rows).astype(np.int32)
    if groups > 1:
        key = group.astype(np.uint16) if groups <= 2**16 else group  # 16 bits sort in linear time
        order = shuffled[np.argsort(key[shuffled], kind="stable")]
        count = np.bincount(group, minlength=groups)
        first = np.cumsum(count) - count
        strata = (np.arange(rows) - np.repeat(first, count) + rng.random(rows)) / np.repeat(count, count)
    else:
        order, strata = shuffled, (np.arange(rows) + rng.random(rows)) / rows
    out = np.empty(rows)
    out[order] = strata
    return out


def _chain(t: CliqueTable) -> list[tuple[int, Scope, Table, NDArray[np.int64]]]:
    """``(column, known columns, alias table)`` for each new column of a clique, flat over (codes of known columns, codes of the column)."""
    order = [*t.given, *t.new]
    table = np.transpose(t.table, [t.columns.index(a) for a in order])
    steps = []
    for k in range(len(t.given), len(order)):
        joint = table.sum(axis=tuple(range(k + 1, len(order))))
        keep, other = _alias(joint.reshape(-1, joint.shape[-1]))
        steps.append((order[k], tuple(order[:k]), keep.ravel(), other.ravel()))
    return steps


def _alias(weights: Table) -> tuple[Table, NDArray[np.int64]]:
    """Walker's alias tables of each row: keep a uniformly drawn cell with probability ``keep``, else take ``other``.

    Every step settles the poorest cell of a row by topping it up from the richest. A cell without weight is never kept; a row without weight is
    never reached and gets equal weights.
    """
    rows, width = weights.shape
    mass = weights.sum(axis=1, keepdims=True)
    left = np.divide(weights * width, mass, out=np.ones_like(weights), where=mass > 0)
    keep, other = np.ones_like(weights), np.tile(np.arange(width), (rows, 1))
    open_, every = np.ones((rows, width), bool), np.arange(rows)
    for _ in range(width - 1):
        poor = np.where(open_, left, np.inf).argmin(axis=1)
        rich = np.where(open_, left, -np.inf).argmax(axis=1)
        needy = left[every, poor] < 1 - 1e-12
        keep[every, poor] = np.where(needy, left[every, poor], 1.0)
        other[every, poor] = np.where(needy, rich, poor)
        left[every, rich] -= np.where(needy, 1 - left[every, poor], 0.0)
        open_[every, poor] = False
    return keep, other
