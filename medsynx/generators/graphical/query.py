"""Queries: which table of counts is asked, at which resolution; and measurements, their noisy answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medsynx.generators.graphical.junction_tree import Scope, Table


@dataclass(frozen=True)
class Query:
    """A table over a few columns, whose neighbouring codes may be merged into groups.

    Attributes:
        scope: column positions, rising.
        starts: for each of them the first code of every group, rising from 0.
        sizes: for each of them the number of codes.
    """

    scope: Scope
    starts: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]

    @classmethod
    def full(cls, sizes: tuple[int, ...], scope: Scope) -> Query:
        """Every code a group of its own; ``sizes`` are those of all columns."""
        own = tuple(sizes[a] for a in scope)
        return cls(scope, tuple(tuple(range(k)) for k in own), own)

    @property
    def shape(self) -> tuple[int, ...]:
        """Groups of each column."""
        return tuple(len(s) for s in self.starts)

    @property
    def cells(self) -> int:
        """Numbers in the answer."""
        return math.prod(self.shape)

    @property
    def exact(self) -> bool:
        """Whether no codes are merged."""
        return self.shape == self.sizes

    @cached_property
    def groups(self) -> tuple[NDArray[np.int64], ...]:
        """For each column: code -> group."""
        return tuple(
            np.searchsorted(s, np.arange(k), side="right") - 1 for s, k in zip(self.starts, self.sizes, strict=True)
        )

    def count(self, codes: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum of the records' integer weights in each cell; codes of shape (rows, all columns), answer of shape (cells,)."""
        cell = np.zeros(len(codes), np.int64)
        for a, group, width in zip(self.scope, self.groups, self.shape, strict=True):
            cell = cell * width + group[codes[:, a]]
        return np.bincount(cell, weights, minlength=self.cells).astype(np.int64)  # exact: far below 2**53

    def merge(self, table: Table) -> Table:
        """A table at full resolution (shape ``sizes``) at this query's."""
        if self.exact:
            return table
        for axis, starts in enumerate(self.starts):
            if len(starts) < self.sizes[axis]:
                table = np.add.reduceat(table, starts, axis=axis)
        return table

    def spread(self, table: Table) -> Table:
        """Each cell's value at every full-resolution cell it is made of: the transpose of :meth:`merge`."""
        return table if self.exact else table[np.ix_(*self.groups)]


@dataclass(frozen=True, eq=False)
class Measurement:
    """A noisy answer: ``values`` in counts, in the query's shape, each with independent noise of standard deviation ``std``."""

    query: Query
    values: Table
    std: float
