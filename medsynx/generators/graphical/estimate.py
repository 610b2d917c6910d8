"""From noisy, overlapping tables to one distribution: Private-PGM (McKenna, Sheldon, Miklau 2019, "Graphical-model based estimation").

Minimises the squared residuals, weighted by their noise, over the marginals of a graphical model, by mirror descent on the log potentials with
a backtracking line search (their algorithm 2). The answer is a junction tree with calibrated tables. Estimation sees noisy totals only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medsynx.generators.graphical.junction_tree import JunctionTree, Scope, Table
from medsynx.generators.graphical.query import Measurement

STD_FLOOR = 1e-3  #: exact tables (noise off in tests) count as almost exact


@dataclass
class Model:
    """A fitted distribution.

    Attributes:
        theta: log potentials by scope, in the scope's shape: where the next fit may start from.
        total: estimated number of records.
    """

    tree: JunctionTree
    theta: dict[Scope, Table]
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
        tree, out = self.tree, {}
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
    start: Mapping[Scope, Table] | None = None,
    masks: Mapping[Scope, Table] | None = None,
    tolerance: float = 1e-6,
) -> Model:
    """Fit a model to measurements.

    Args:
        sizes: codes of each column.
        measurements: their scopes become cliques; the caller keeps the tree affordable (:func:`junction_tree.affordable`).
        iterations: steps of mirror descent at most; it stops after five that lower the loss by less than ``tolerance`` of it.
        start: log potentials to start from.
        masks: log potentials that stay fixed: 0, or ``IMPOSSIBLE`` for structural zeros.

    Returns:
        A model in which every measured and every masked scope lies in a clique.
    """
    merged = _merged(measurements)
    total = estimate_total(measurements)
    fixed = dict(masks or {})
    theta = {s: t for s, t in (start or {}).items() if s not in fixed}
    tree = JunctionTree(sizes, [*{m.query.scope for m in merged}, *theta, *fixed])
    for m in merged:
        theta.setdefault(m.query.scope, np.zeros(m.query.sizes))
    homes = {s: _home(tree, s) for s in {*theta, *fixed}}
    base = [np.zeros(s) for s in tree.shapes]
    for s, t in fixed.items():
        base[homes[s]] = base[homes[s]] + t.reshape(tree.broadcast(homes[s], s))
    weights = [max(m.std, STD_FLOOR) ** -2 for m in merged]

    def calibrated(theta: dict[Scope, Table]) -> tuple[list[Table], list[Table]]:
        log = list(base)
        for s, t in theta.items():
            log[homes[s]] = log[homes[s]] + t.reshape(tree.broadcast(homes[s], s))
        return tree.calibrate(log)

    def residuals(marginals: list[Table]) -> list[Table]:
        cache: dict[Scope, Table] = {}
        out = []
        for m in merged:
            s = m.query.scope
            if s not in cache:
                cache[s] = marginals[homes[s]].sum(axis=tree.outside(homes[s], s)) * total
            out.append(m.query.merge(cache[s]) - m.values)
        return out

    def loss(found: list[Table]) -> float:
        return 0.5 * sum(w * float(np.vdot(r, r)) for w, r in zip(weights, found, strict=True))

    current = calibrated(theta)
    left = residuals(current[0])
    now, step, idle = loss(left), 1 / (total * max(weights, default=1.0)), 0
    for _ in range(iterations):
        gradient: dict[Scope, Table] = {}
        for m, w, r in zip(merged, weights, left, strict=True):
            pull = m.query.spread(w * r)
            gradient[m.query.scope] = gradient[m.query.scope] + pull if m.query.scope in gradient else pull
        for _ in range(30):
            tried = {s: t - step * gradient[s] if s in gradient else t for s, t in theta.items()}
            moved = calibrated(tried)
            after = residuals(moved[0])
            new = loss(after)
            gain = sum(w * float(np.vdot(r, r - q)) for w, r, q in zip(weights, left, after, strict=True))
            if now - new >= 0.5 * gain:
                break
            step /= 2
        idle = idle + 1 if now - new <= tolerance * now else 0
        if new > now:
            break  # no step helps any more: keep what there is
        theta, current, left, now, step = tried, moved, after, new, step * 1.4
        if idle >= 5:
            break
    return Model(tree, theta, total, *current)


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
        values = sum(w * m.values for w, m in zip(weights, same, strict=True)) / sum(weights)
        out.append(Measurement(same[0].query, values, sum(weights) ** -0.5))
    return out
