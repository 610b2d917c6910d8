"""Which tables ``marginals`` asks for, in which rounds, with which share of the budget: a public rule of the study alone.

Three courses, measured in docs/benchmarks.md:

- ``pairs``: all 1-way and 2-way tables, then the chosen cliques again, up to 3-way (one round where there are three columns or fewer).
- ``halves``: 1-way tables, all pairs as 2x2 tables split at the noisy medians, then the best tree and the target's star in full. For many columns,
  few patients or a strict budget: two halves of a column have counts that stand out of the noise when 10 x 10 cells do not.
- ``star``: 1-way tables and the pairs with the target only. For too few patients even for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.constraints import masks
from medsynx.generators.graphical.junction_tree import Scope
from medsynx.generators.graphical.query import Query
from medsynx.generators.graphical.select import all_pairs
from medsynx.generators.table_sum import NORM, TableSum
from medsynx.privacy import gaussian_multiplier
from medsynx.study import Study
from medsynx.target import target

Course = Literal["pairs", "halves", "star"]
ONE_WAY = 0.1  #: share of the 1-way tables beside all pairs, which carry 1-way information too
AGAIN = 0.4  #: share of the second round of ``pairs``
MARGINS, HALVES = 0.15, 0.25  #: shares of the first two rounds of ``halves``
STAR_ONE_WAY = 0.3
DROWNED = (
    0.5  #: a pair table of the first round is coarsened while noise alone would misplace this share of the records
)
CLIQUE_CELLS = 8192  #: most cells of the chosen cliques of ``pairs``
HALVES_BEYOND = (
    0.25  #: expected share of records that noise alone misplaces in a pair table, above which ``halves`` does better
)
STAR_BEYOND = 0.3  #: the same of a table of the chosen tree, above which ``star`` does better


@dataclass(frozen=True)
class Stage:
    """One exchange: its step's name, its share of the family's budget, how many numbers it sends, and a record's L2 norm in units."""

    name: str
    share: float
    size: int
    norm: float


class Schedule:
    """The course of a study and its stages. Both sides compute it from the manifest."""

    def __init__(self, study: Study, patients: int, cell_budget: int) -> None:
        self.sizes = codec.sizes(study)
        names = list(study.data_columns)
        target = study.by_role("target")
        self.target = names.index(target) if target else None
        self.survival: Scope = tuple(sorted(names.index(n) for n in study.survival))  # always measured together
        self.patients, self.epsilon = patients, study.privacy.epsilon
        # averaging or a cap: what one patient amounts to is what the noise must hide
        self.multiplier = (
            gaussian_multiplier(study.privacy.epsilon, study.privacy.delta) * study.privacy.records_counted
        )
        self.bins = Bins(study, cell_budget)
        self.masks = masks(study)
        self.course, self.reason = self._choose()

    @cached_property
    def pairs(self) -> list[Scope]:
        """Every pair of columns."""
        return all_pairs(len(self.sizes))

    @cached_property
    def star(self) -> list[Scope]:
        """Every pair with the target; none without one."""
        return [p for p in self.pairs if self.target in p]

    @cached_property
    def always(self) -> list[Scope]:
        """What ``halves`` and ``star`` measure in full whatever is found: the star and the survival table."""
        return self.star + [self.survival] * bool(self.survival and self.survival not in self.star)

    def misplaced(self, cells: float, tables: int, share: float) -> float:
        """Share of the records that noise alone puts in wrong cells of a table: cells x mean absolute noise / 2 / patients."""
        std = self.multiplier * math.sqrt(max(tables, 1) / share)
        return cells * std * math.sqrt(2 / math.pi) / 2 / self.patients

    def _mean_cells(self, scopes: Sequence[Scope]) -> float:
        return float(np.mean([math.prod(self.sizes[a] for a in s) for s in scopes])) if scopes else 0.0

    def _choose(self) -> tuple[Course, str]:
        d = len(self.sizes)
        pairs = self.misplaced(self._mean_cells(self.pairs), len(self.pairs), (1 - AGAIN) * (1 - ONE_WAY))
        tree = self.misplaced(self._mean_cells(self.star or self.pairs), d - 1 + len(self.star), 1 - MARGINS - HALVES)
        scale = f"{self.patients:,} patients expected, {d} columns, epsilon {self.epsilon:g}"
        if pairs <= HALVES_BEYOND:
            return "pairs", f"all pairs of columns were measured ({scale})"
        if tree <= STAR_BEYOND:
            return "halves", f"coarse halves of all pairs chose which pairs were measured in full ({scale})"
        told = "pairs with the target" if self.star else "no pairs: there is no target"
        return (
            "star",
            f"too few patients for relations among all columns: only single columns and {told} were measured ({scale})",
        )

    @cached_property
    def first(self) -> TableSum:
        """The tables of the first exchange, which no choice precedes."""
        one = [Query.full(self.sizes, (a,)) for a in range(len(self.sizes))]
        if self.course == "halves":
            return TableSum(one)
        if self.course == "pairs":
            telling = DROWNED / self.misplaced(1, len(self.pairs), (1 - AGAIN) * (1 - ONE_WAY))
            two = [Query(p, self.bins.pair(p, telling), tuple(self.sizes[a] for a in p)) for p in self.pairs]
            share = ONE_WAY
            two += [Query.full(self.sizes, self.survival)] * (len(self.survival) == 3)
        else:
            two, share = [Query.full(self.sizes, p) for p in self.always], STAR_ONE_WAY
        weights = [share / len(one)] * len(one) + [(1 - share) / len(two)] * len(two) if two else None
        return TableSum([*one, *two], weights)

    @cached_property
    def clique_cells(self) -> int:
        """Length of the vector of chosen cliques, whatever is chosen."""
        if self.course == "pairs":
            own = math.prod(self.sizes[a] for a in self.survival) if len(self.survival) == 2 else 0
            return max(own, min(CLIQUE_CELLS, sum(math.prod(self.sizes[a] for a in p) for p in self.pairs)))
        star = sum(math.prod(self.sizes[a] for a in p) for p in self.always)
        rest = [p for p in self.pairs if p not in self.star]
        return star + max(
            math.ceil(1.5 * (len(self.sizes) - 1) * self._mean_cells(rest)),
            max((math.prod(self.sizes[a] for a in p) for p in rest), default=0),
        )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In order."""
        norm = math.sqrt(sum(u**2 for u in self.first.units))
        chosen = "cliques"
        if self.course == "halves":
            return (
                Stage("margins", MARGINS, self.first.size, norm),
                Stage("halves", HALVES, 4 * len(self.pairs), NORM),
                Stage(chosen, 1 - MARGINS - HALVES, self.clique_cells, NORM),
            )
        if self.course == "pairs" and len(self.sizes) > 3:
            return Stage("tables", 1 - AGAIN, self.first.size, norm), Stage(chosen, AGAIN, self.clique_cells, NORM)
        return (Stage("tables", 1.0, self.first.size, norm),)

    def halves(self, splits: NDArray[np.int64]) -> TableSum:
        """All pairs as 2x2 tables; column j's second half starts at code ``splits[j]``. Raises ValueError for an impossible split."""
        if splits.shape != (len(self.sizes),) or not all(1 <= s < k for s, k in zip(splits, self.sizes, strict=True)):
            raise ValueError("a split lies outside its column")
        starts = [(0, int(s)) for s in splits]
        return TableSum([Query(p, tuple(starts[a] for a in p), tuple(self.sizes[a] for a in p)) for p in self.pairs])

    def cliques(self, scopes: NDArray[np.int64]) -> TableSum:
        """Chosen cliques, at full resolution. Raises ValueError for what is not a list of different scopes that fits.

        Args:
            scopes: shape (cliques, 3): rising column positions, then -1.
        """
        if scopes.ndim != 2 or scopes.shape[1] != 3:
            raise ValueError("cliques are rows of three columns")
        found = [tuple(int(a) for a in row if a >= 0) for row in scopes]
        inside = all(s and s == tuple(sorted(set(s))) and s[-1] < len(self.sizes) for s in found)
        if not inside or len(set(found)) != len(found):
            raise ValueError("a clique is not a set of the study's columns, or named twice")
        return TableSum([Query.full(self.sizes, s) for s in found], size=self.clique_cells)


class Bins:
    """How columns are coarsened: neighbouring bins are merged, and so are neighbouring levels, in the dictionary's order.

    ``other`` and ``missing`` stay apart from the values, and so do the two classes of the target. All pair tables together get at most
    ``cell_budget`` cells: while they have more, the column with the most groups gets half as many.
    """

    def __init__(self, study: Study, cell_budget: int) -> None:
        self.sizes = codec.sizes(study)
        self.values = [codec.values(c) for c in study.data_columns.values()]
        self.borders: dict[int, set[int]] = {}
        if (task := target(study)) is not None:
            inside = [k in task.positive for k in range(self.values[task.column])]
            self.borders[task.column] = {k for k in range(1, len(inside)) if inside[k] != inside[k - 1]}
        self.kept = list(self.values)
        while self._cells() > cell_budget and max(self.kept) > 1:
            self._halve(self.kept, range(len(self.kept)))

    def starts(self, column: int, kept: int) -> tuple[int, ...]:
        """First codes of a column's groups when its values make about ``kept`` of them."""
        known = self.values[column]
        merged = {(i * known) // kept for i in range(kept)} | self.borders.get(column, set())
        return (*sorted(merged), *range(known, self.sizes[column]))

    def pair(self, pair: Scope, most: float) -> tuple[tuple[int, ...], ...]:
        """First codes of both columns' groups such that their table has at most ``most`` cells, if merging can do it."""
        kept = [self.kept[a] for a in pair]

        def found() -> tuple[tuple[int, ...], ...]:
            return tuple(self.starts(a, k) for a, k in zip(pair, kept, strict=True))

        while math.prod(map(len, found())) > most and max(kept) > 1:
            self._halve(kept, pair)
        return found()

    def _cells(self) -> int:
        groups = [len(self.starts(j, k)) for j, k in enumerate(self.kept)]
        return (sum(groups) ** 2 - sum(g * g for g in groups)) // 2

    def _halve(self, kept: list[int], columns: Sequence[int]) -> None:
        """Half as many groups for the one of ``columns`` that has the most and can be merged."""
        groups = [len(self.starts(a, k)) if k > 1 else 0 for a, k in zip(columns, kept, strict=True)]
        widest = groups.index(max(groups))
        kept[widest] = (kept[widest] + 1) // 2


def median_splits(margins: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    """Where each noisy 1-way table is cut into two halves as equal as can be: the first code of the second half, 1 at least."""
    out = []
    for counts in margins:
        below = np.cumsum(np.maximum(counts, 0))[:-1]
        out.append(1 + int(np.abs(below - (below[-1] + max(counts[-1], 0)) / 2).argmin()) if below.size else 0)
    return np.array(out, np.int64)
