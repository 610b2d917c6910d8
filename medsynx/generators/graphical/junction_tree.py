"""A junction tree over categorical columns, and exact inference on it.

Triangulation by greedy elimination (smallest resulting clique first), a maximum spanning tree over separators, and one collect-distribute pass
in logarithms (Lauritzen and Spiegelhalter 1988; Koller and Friedman 2009, chapter 10). Columns are positions 0..d-1 with ``sizes[j]`` codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Scope = tuple[int, ...]
Table = NDArray[np.float64]


def cliques_of(sizes: Sequence[int], scopes: Iterable[Scope]) -> list[Scope]:
    """Maximal cliques of a triangulated graph in which every scope is complete; each clique sorted, columns without a scope alone."""
    neighbours: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for a in scope:
            neighbours[a].update(scope)
    for a in range(len(sizes)):
        neighbours[a].discard(a)

    def cost(a: int) -> int:
        return math.prod(sizes[b] for b in neighbours[a]) * sizes[a]

    costs = {a: cost(a) for a in range(len(sizes))}
    found: list[frozenset[int]] = []
    while costs:
        a = min(costs, key=lambda v: (costs[v], v))
        del costs[a]
        around = neighbours[a]
        found.append(frozenset(around | {a}))
        for b in around:
            neighbours[b] |= around
            neighbours[b] -= {a, b}
        for b in around:
            costs[b] = cost(b)
    found.sort(key=lambda c: (-len(c), sorted(c)))
    maximal: list[frozenset[int]] = []
    for c in found:
        if not any(c <= m for m in maximal):
            maximal.append(c)
    return [tuple(sorted(c)) for c in maximal]


def tree_cells(sizes: Sequence[int], scopes: Iterable[Scope]) -> int:
    """Cells in all cliques of the junction tree of these scopes: what it costs to hold and to fit."""
    return sum(math.prod(sizes[a] for a in c) for c in cliques_of(sizes, scopes))


def affordable(
    sizes: Sequence[int], kept: Sequence[Scope], ranked: Iterable[Scope], limit: int, most: int | None = None
) -> list[Scope]:
    """The scopes of ``ranked``, best first, that the tree of ``kept`` can take without holding more than ``limit`` cells.

    A scope that would carry the tree over the limit is dropped and the next one tried; at most ``most`` are taken.
    """
    taken: list[Scope] = []
    for scope in ranked:
        if most is not None and len(taken) == most:
            break
        if tree_cells(sizes, [*kept, *taken, scope]) <= limit:
            taken.append(scope)
    return taken


class JunctionTree:
    """Cliques joined so that every column's cliques are connected.

    Attributes:
        cliques: each a sorted scope.
        parent: parent clique of each clique; None for the root, clique 0. Parts without a common column are joined by an empty separator.
        order: cliques, parents first.
        separator: for each clique, the columns it shares with its parent.
    """

    def __init__(self, sizes: Sequence[int], scopes: Iterable[Scope]) -> None:
        self.sizes = tuple(sizes)
        self.cliques = cliques_of(sizes, scopes)
        self.shapes = [tuple(self.sizes[a] for a in c) for c in self.cliques]
        self.parent: list[int | None] = [None] * len(self.cliques)
        self.order = [0]
        members = [frozenset(c) for c in self.cliques]
        nearest = {j: (len(members[0] & members[j]), 0) for j in range(1, len(members))}
        while nearest:
            j = max(nearest, key=lambda k: (nearest[k][0], -k))
            self.parent[j] = nearest.pop(j)[1]
            self.order.append(j)
            for k, (shared, _) in nearest.items():
                if len(members[j] & members[k]) > shared:
                    nearest[k] = (len(members[j] & members[k]), j)
        self.separator: list[Scope] = [
            () if p is None else tuple(a for a in c if a in members[p])
            for c, p in zip(self.cliques, self.parent, strict=True)
        ]

    @property
    def cells(self) -> int:
        """Cells in all cliques."""
        return sum(math.prod(s) for s in self.shapes)

    def home(self, scope: Scope) -> int | None:
        """The smallest clique that holds the scope, or None."""
        holding = [k for k, c in enumerate(self.cliques) if set(scope) <= set(c)]
        return min(holding, key=lambda k: math.prod(self.shapes[k])) if holding else None

    def outside(self, clique: int, scope: Scope) -> tuple[int, ...]:
        """Axes of the clique's table that are not in the scope."""
        return tuple(i for i, a in enumerate(self.cliques[clique]) if a not in scope)

    def broadcast(self, clique: int, scope: Scope) -> tuple[int, ...]:
        """Shape in which a table over the scope broadcasts to the clique's table."""
        return tuple(self.sizes[a] if a in scope else 1 for a in self.cliques[clique])

    def calibrate(self, potentials: Sequence[Table]) -> tuple[list[Table], list[Table], float]:
        """Exact marginals of the distribution proportional to exp(sum of the cliques' log potentials).

        Args:
            potentials: one finite table a clique, in its shape. Impossible cells hold :data:`IMPOSSIBLE`.

        Returns:
            For each clique its marginal (sum 1) and its conditional ``P(clique | separator)``, both in its shape; and the logarithm of the
            normalising constant.
        """
        log = list(potentials)
        marginal: list[Table] = [np.empty(0)] * len(log)
        conditional: list[Table] = [np.empty(0)] * len(log)
        for j in reversed(self.order):
            p, axes = self.parent[j], self.outside(j, self.separator[j])
            top = log[j].max(axis=axes, keepdims=True)
            weight = np.exp(log[j] - top)
            mass = weight.sum(axis=axes, keepdims=True)
            conditional[j] = weight / mass
            message = np.log(mass) + top
            if p is not None:
                log[p] = log[p] + message.reshape(self.broadcast(p, self.separator[j]))
        log_z = float(message.item())  # the root comes last and has no separator
        marginal[self.order[0]] = conditional[self.order[0]]
        for j in self.order[1:]:
            p = self.parent[j]
            assert p is not None
            shared = marginal[p].sum(axis=self.outside(p, self.separator[j]))
            marginal[j] = conditional[j] * shared.reshape(self.broadcast(j, self.separator[j]))
        return marginal, conditional, log_z


#: Log potential of an impossible cell: finite, so that the arithmetic stays free of infinities; its exponential is exactly 0.
IMPOSSIBLE = -1e6
