"""From noisy, overlapping tables to one distribution, as Private-PGM (McKenna, Sheldon, Miklau 2019, "Graphical-model based estimation").

Minimises half the squared residuals, each divided by its noise variance, minus ``smoothing x records x entropy``: of the distributions that fit
about as well, the least committed one. Its dual is the smooth, convex, relaxed maximum-entropy problem (Dudik, Phillips, Schapire 2007), one weight
a measured cell, with marginals by a junction tree; L-BFGS solves it in a tenth of the steps that mirror descent took. Estimation sees
noisy totals only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from medsynx.generators.graphical.junction_tree import JunctionTree, Scope, Table
from medsynx.generators.graphical.query import Measurement, Query

STD_FLOOR = 0.5  #: records: exact tables (noise off in tests) count as almost exact
SMOOTHING = 0.01  #: of the entropy; see docs/benchmarks.md


@dataclass
class Model:
    """A fitted distribution.

    Attributes:
        theta: weight of each measured cell by query, in its shape: where the next fit may start from.
        total: estimated number of records.
    """

    tree: JunctionTree
    theta: dict[Query, Table]
    total: float
    marginals: list[Table] = field(repr=False)
    conditionals: list[Table] = field(repr=False)

    def marginal(self, scope: Scope) -> Table:
        """Probabilities over a scope that some clique holds, in the scope's shape. Raises KeyError when none does."""
        home = self.tree.home(scope)
        if home is None:
            raise KeyError(scope)
        return self.marginals[home].sum(axis=self.tree.outside(home, scope))

    def pairs(self) -> dict[Scope, Table]:
        """Probabilities of every pair of columns: for each column one walk over the tree, carrying its joint with the separators."""
        tree = self.tree
        out: dict[Scope, Table] = {}
        joined: list[list[int]] = [[] for _ in tree.cliques]
        for j, p in enumerate(tree.parent):
            if p is not None:
                joined[j].append(p)
                joined[p].append(j)
        for a in range(len(tree.sizes)):
            root = tree.home((a,))
            assert root is not None
            stack: list[tuple[int, int | None, Table]] = [(root, None, self._with(a, root))]
            seen = {a}
            while (
                stack
            ):  # joint: P(a, clique) with a moved to the front, of shape (codes of a, clique's shape without a)
                c, before, joint = stack.pop()
                columns = [b for b in tree.cliques[c] if b != a]
                for k, b in enumerate(columns):
                    if b > a and b not in seen:
                        out[a, b] = joint.sum(axis=tuple(i + 1 for i in range(len(columns)) if i != k))
                    seen.add(b)
                for d in joined[c]:
                    if d != before:
                        stack.append(
                            (d, c, self._with(a, d) if a in tree.cliques[d] else self._step(joint, columns, d))
                        )
        return out

    def _with(self, a: int, clique: int) -> Table:
        return np.moveaxis(self.marginals[clique], self.tree.cliques[clique].index(a), 0)

    def _step(self, joint: Table, columns: list[int], clique: int) -> Table:
        """From P(a, columns) to P(a, next clique), which are independent given what they share."""
        tree = self.tree
        shared = tuple(b for b in columns if b in tree.cliques[clique])
        given = joint.sum(axis=tuple(i + 1 for i, b in enumerate(columns) if b not in shared))
        table = self.marginals[clique]
        mass = table.sum(axis=tree.outside(clique, shared), keepdims=True)
        conditional = np.divide(table, mass, out=np.zeros_like(table), where=mass > 0)
        return given.reshape(len(joint), *tree.broadcast(clique, shared)) * conditional[None]


def estimate_total(measurements: Sequence[Measurement]) -> float:
    """Number of records: every table's sum estimates it, weighted by its variance (cells x noise variance); 1 at least."""
    weights = [1 / (m.values.size * max(m.std, STD_FLOOR) ** 2) for m in measurements]
    sums = [float(m.values.sum()) for m in measurements]
    return max(1.0, float(np.average(sums, weights=weights))) if sums else 1.0


def fit(
    sizes: tuple[int, ...],
    measurements: Sequence[Measurement],
    *,
    iterations: int,
    start: Mapping[Query, Table] | None = None,
    masks: Mapping[Scope, Table] | None = None,
    smoothing: float = SMOOTHING,
) -> Model:
    """Fit a model to measurements.

    Args:
        sizes: codes of each column.
        measurements: their scopes become cliques; the caller keeps the tree affordable (:func:`junction_tree.affordable`).
        iterations: of L-BFGS at most.
        start: weights to start from, by query (a former model's ``theta``).
        masks: log potentials that stay fixed: 0, or ``IMPOSSIBLE`` for structural zeros.
        smoothing: weight of the entropy.

    Returns:
        A model in which every measured and every masked scope lies in a clique.
    """
    merged, fixed = _merged(measurements), dict(masks or {})
    total = estimate_total(measurements)
    tree = JunctionTree(sizes, [*{m.query.scope for m in merged}, *fixed])
    homes = {s: _home(tree, s) for s in {*(m.query.scope for m in merged), *fixed}}
    base = [np.zeros(s) for s in tree.shapes]
    for s, t in fixed.items():
        base[homes[s]] = base[homes[s]] + t.reshape(tree.broadcast(homes[s], s))
    cuts = np.cumsum([m.values.size for m in merged])[:-1]
    # In units in which the quadratic term is the identity, whatever the noise of a table.
    scale = [smoothing**-0.5 / max(m.std, STD_FLOOR) for m in merged]

    def unpack(x: NDArray[np.float64]) -> list[Table]:
        return [b.reshape(m.values.shape) * c for b, m, c in zip(np.split(x, cuts), merged, scale, strict=True)]

    def calibrated(theta: list[Table]) -> tuple[list[Table], list[Table], float]:
        by_scope: dict[Scope, Table] = {}
        for m, t in zip(merged, theta, strict=True):
            spread, s = m.query.spread(t), m.query.scope
            by_scope[s] = by_scope[s] + spread if s in by_scope else spread
        log = list(base)
        for s, t in by_scope.items():
            log[homes[s]] = log[homes[s]] + t.reshape(tree.broadcast(homes[s], s))
        return tree.calibrate(log)

    def dual(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        theta = unpack(x)
        marginals, _, log_z = calibrated(theta)
        value, slopes, expected = total * log_z + 0.5 * float(x @ x), [], {}
        for m, t, c in zip(merged, theta, scale, strict=True):
            s = m.query.scope
            if s not in expected:
                expected[s] = marginals[homes[s]].sum(axis=tree.outside(homes[s], s)) * total
            value -= float(np.vdot(t, m.values))
            slopes.append(((m.query.merge(expected[s]) - m.values) * c).ravel())
        return value, np.concatenate(slopes) + x

    x = np.zeros(sum(m.values.size for m in merged))
    if start and merged:
        known = [start.get(m.query, np.zeros(m.values.shape)) / c for m, c in zip(merged, scale, strict=True)]
        x = np.concatenate([k.ravel() for k in known])
    if iterations and merged:
        options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-3}
        x = minimize(dual, x, jac=True, method="L-BFGS-B", options=options).x
    theta = unpack(x)
    marginals, conditionals, _ = calibrated(theta)
    return Model(tree, {m.query: t for m, t in zip(merged, theta, strict=True)}, total, marginals, conditionals)


def _home(tree: JunctionTree, scope: Scope) -> int:
    home = tree.home(scope)
    assert home is not None, "every scope was made a clique"
    return home


def _merged(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One measurement a query: repeated ones are averaged by inverse variance."""
    by: dict[tuple[Scope, tuple[tuple[int, ...], ...]], list[Measurement]] = {}
    for m in measurements:
        by.setdefault((m.query.scope, m.query.starts), []).append(m)
    out = []
    for same in by.values():
        weights = [max(m.std, STD_FLOOR) ** -2 for m in same]
        values = np.average([m.values for m in same], axis=0, weights=weights)
        out.append(Measurement(same[0].query, values, sum(weights) ** -0.5))
    return out
