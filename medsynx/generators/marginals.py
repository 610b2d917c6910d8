"""``marginals``: one secure sum of all 1-way and 2-way tables, then a clique tree drawn with numpy.

A patient's record falls in one cell of every table, so one integer vector with a known sensitivity is all that leaves a site. Choosing the tree and
making the tables consistent is post-processing of the noised total (McKenna, Miklau, Sheldon 2021, "Winning the NIST contest": measure,
then estimate). This is the simplest member of that line: a maximum spanning tree over 2-way tables.
"""

from __future__ import annotations

import io
import math
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medsynx import codec
from medsynx.generators.base import Arrays, Artefact, Contribution, Patients, State, Total
from medsynx.plan import PricedStep, Sensitivity, Step
from medsynx.study import Study

UNIT = 1024  #: cargo units a count: a grid fine enough for the accounting of :mod:`medsynx.privacy`
ONE_WAY_SHARE = 0.1  #: share of the budget for the 1-way tables; the 2-way tables also carry 1-way information
Table = NDArray[np.float64]


class Parameters(BaseModel):
    """``cell_budget``: at most so many cells in all 2-way tables; pairs with the target come first, then the smallest tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cell_budget: int = Field(default=40_000, ge=16, le=1_000_000)


class Layout:
    """Where each table lies in the vector: the order is public and follows from the study alone."""

    def __init__(self, study: Study) -> None:
        self.sizes = codec.sizes(study)
        columns = range(len(self.sizes))
        names = list(study.data_columns)
        target = study.by_role("target")
        budget = Parameters.model_validate(study.family.parameters).cell_budget
        first = names.index(target) if target else -1
        self.pairs: list[tuple[int, int]] = []
        for a, b in sorted(
            combinations(columns, 2), key=lambda p: (first not in p, self.sizes[p[0]] * self.sizes[p[1]], p)
        ):
            budget -= self.sizes[a] * self.sizes[b]
            if budget < 0:
                break
            self.pairs.append((a, b))
        self.pairs.sort()
        # Integer units a count: the ratio gives the 1-way tables their share of the squared sensitivity.
        ratio = (
            math.sqrt(ONE_WAY_SHARE / (1 - ONE_WAY_SHARE) * len(self.pairs) / len(self.sizes)) if self.pairs else 1.0
        )
        self.unit_one, self.unit_two = max(UNIT // 4, round(UNIT * ratio)), UNIT
        self.length = sum(self.sizes) + sum(self.sizes[a] * self.sizes[b] for a, b in self.pairs)

    def sensitivity(self, cap: int) -> Sensitivity:
        """One patient with at most ``cap`` records, all of which may fall in the same cells."""
        squared = len(self.sizes) * self.unit_one**2 + len(self.pairs) * self.unit_two**2
        return Sensitivity(
            l2=cap * math.sqrt(squared),
            linf=cap * max(self.unit_one, self.unit_two),
            source="a record adds one unit to one cell of each table; tables are disjoint entries of the vector",
        )

    def count(self, codes: codec.Codes) -> NDArray[np.int64]:
        """All tables of these records as one vector in units."""
        n = self.sizes
        one = [np.bincount(codes[:, j], minlength=n[j]) * self.unit_one for j in range(len(n))]
        two = [
            np.bincount(codes[:, a] * n[b] + codes[:, b], minlength=n[a] * n[b]) * self.unit_two for a, b in self.pairs
        ]
        return np.concatenate([*one, *two]).astype(np.int64)

    def split(self, vector: NDArray[Any]) -> tuple[list[Table], dict[tuple[int, int], Table]]:
        """A vector in units back to 1-way tables and 2-way tables in counts."""
        shapes = [(k,) for k in self.sizes] + [(self.sizes[a], self.sizes[b]) for a, b in self.pairs]
        blocks = np.split(np.asarray(vector, float), np.cumsum([math.prod(s) for s in shapes])[:-1])
        tables = [block.reshape(shape) for block, shape in zip(blocks, shapes, strict=True)]
        d = len(self.sizes)
        return [t / self.unit_one for t in tables[:d]], {
            p: t / self.unit_two for p, t in zip(self.pairs, tables[d:], strict=True)
        }


class Marginals:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """One step: every table, once."""
        layout = Layout(study)
        sensitivity = layout.sensitivity(study.privacy.max_records_per_patient)
        return (Step("tables", "secure-sum", "train", layout.length, share=1.0, sensitivity=sensitivity),)

    def next_step(self, study: Study, state: State) -> Step | None:
        """The one step until its total is there."""
        return None if "tables" in state.arrays else self.plan(study)[0]

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """All tables of this site, exact: the door adds the noise."""
        return Contribution({"sum": Layout(study).count(patients.codes)})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised tables and how noisy they are."""
        return State({"tables": total.arrays["sum"]}, {"noise_std": total.noise_std, "sites": total.sites})

    def export(self, study: Study, state: State) -> Artefact:
        """A spanning tree of conditional tables in one NPZ; ``sampler.json`` names new and given columns of each."""
        layout = Layout(study)
        tree = fit_tree(layout, state.arrays["tables"], float(state.facts["noise_std"]))
        arrays = {f"cdf_{k}": cdf for k, (_, _, cdf) in enumerate(tree)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        tables = [{"new": new, "given": given, "cdf": f"cdf_{k}"} for k, (new, given, _) in enumerate(tree)]
        return Artefact(
            {"tables.npz": buffer.getvalue()}, {"kind": "clique-tree", "file": "tables.npz", "tables": tables}
        )


def fit_tree(layout: Layout, vector: NDArray[Any], noise_std: float) -> list[tuple[list[int], list[int], Table]]:
    """From noised tables to ``(new columns, given columns, cdf)`` tables, parents before children."""
    one, two = layout.split(vector)
    std_one, std_two = noise_std / layout.unit_one, noise_std / layout.unit_two
    total = max(1.0, _total(one, two, std_one, std_two))
    margins = [_project(m, total) for m in _margins(layout, one, two, std_one, std_two)]
    scores = {p: _dependence(t, margins[p[0]], margins[p[1]], total, std_two) for p, t in two.items()}
    neighbours = _spanning_tree(len(layout.sizes), {p: s for p, s in scores.items() if s > 0})
    tree: list[tuple[list[int], list[int], Table]] = []
    for new, given in _walk(neighbours):
        if given is None:
            tree.append(([new], [], _cdf(margins[new][None, :])))
            continue
        pair = (min(new, given), max(new, given))
        joint = _rake(_project(two[pair], total), margins[pair[0]], margins[pair[1]])
        tree.append(([new], [given], _cdf(joint if pair[0] == given else joint.T)))
    return tree


def _total(one: list[Table], two: dict[tuple[int, int], Table], std_one: float, std_two: float) -> float:
    """Number of records: every table's sum is an estimate of it, weighted by its variance (cells x noise variance)."""
    if std_one == 0:
        return float(one[0].sum())
    estimates = [(t.sum(), t.size * std_one**2) for t in one] + [(t.sum(), t.size * std_two**2) for t in two.values()]
    return float(sum(s / v for s, v in estimates) / sum(1 / v for _, v in estimates))


def _margins(
    layout: Layout, one: list[Table], two: dict[tuple[int, int], Table], std_one: float, std_two: float
) -> list[Table]:
    """1-way tables, each averaged with the row or column sums of the 2-way tables it is in (inverse variance)."""
    value = [t / max(std_one, 1e-9) ** 2 for t in one]
    weight = [1 / max(std_one, 1e-9) ** 2 for _ in one]
    for (a, b), t in two.items():
        for j, margin, summed in ((a, t.sum(1), layout.sizes[b]), (b, t.sum(0), layout.sizes[a])):
            precision = 1 / (summed * max(std_two, 1e-9) ** 2)
            value[j] = value[j] + margin * precision
            weight[j] += precision
    return [v / w for v, w in zip(value, weight, strict=True)]


def _project(table: Table, total: float) -> Table:
    """Closest table (least squares) with no negative cell and this sum (Duchi et al. 2008)."""
    flat = np.sort(table.ravel())[::-1]
    excess = (np.cumsum(flat) - total) / np.arange(1, flat.size + 1)
    shift = excess[np.nonzero(flat - excess > 0)[0][-1]]
    return np.maximum(table - shift, 0.0)


def _dependence(table: Table, a: Table, b: Table, total: float, std: float) -> float:
    """How far a noisy table is from independence, in records, after the noise is taken out; 0 when noise alone explains it.

    The squared distance is unbiased once cells x variance is subtracted; below three standard deviations of that estimate
    it says nothing.
    """
    difference = table - np.outer(a, b) / total
    squared = float((difference**2).sum()) - table.size * std**2
    if squared <= 3 * std**2 * math.sqrt(2 * table.size):
        return 0.0
    absolute = float(np.abs(difference).sum()) - math.sqrt(2 / math.pi) * std * table.size
    return max(absolute, math.sqrt(squared))


def _spanning_tree(columns: int, scores: dict[tuple[int, int], float]) -> dict[int, list[int]]:
    """Maximum spanning forest (Kruskal) as an adjacency list."""
    group = list(range(columns))
    neighbours: dict[int, list[int]] = {j: [] for j in range(columns)}
    for (a, b), _ in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        if group[a] != group[b]:
            group = [group[a] if g == group[b] else g for g in group]
            neighbours[a].append(b)
            neighbours[b].append(a)
    return neighbours


def _walk(neighbours: dict[int, list[int]]) -> list[tuple[int, int | None]]:
    """Columns with their parent, parents first; a root's parent is None."""
    order: list[tuple[int, int | None]] = []
    seen: set[int] = set()
    for root in neighbours:
        queue: list[tuple[int, int | None]] = [(root, None)] if root not in seen else []
        while queue:
            node, parent = queue.pop(0)
            seen.add(node)
            order.append((node, parent))
            queue += [(child, node) for child in neighbours[node] if child != parent]
    return order


def _rake(table: Table, a: Table, b: Table, rounds: int = 50) -> Table:
    """Iterative proportional fitting to both margins; a margin's mass that the table has no cell for is spread by independence."""
    fitted = table + 1e-9 * np.outer(a, b) / max(a.sum(), 1e-9)
    for _ in range(rounds):
        fitted = fitted * (a / np.maximum(fitted.sum(1), 1e-300))[:, None]
        fitted = fitted * (b / np.maximum(fitted.sum(0), 1e-300))[None, :]
    return fitted


def _cdf(table: Table) -> Table:
    """Rows to cumulative distributions; a row without mass becomes the table's overall distribution."""
    overall = table.sum(0)
    overall = overall / overall.sum() if overall.sum() > 0 else np.full(table.shape[1], 1 / table.shape[1])
    mass = table.sum(1, keepdims=True)
    cdf = np.cumsum(np.where(mass > 0, table / np.where(mass > 0, mass, 1), overall), axis=1)
    return cdf / cdf[:, -1:]
