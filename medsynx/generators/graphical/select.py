"""Which tables to keep: greedy growth, the best tree and triangles, all from noisy totals alone, so that choosing costs no privacy.

Scores are linear in the tables, or computed after the sum: errors that each site took absolutely would not add up to the error of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from medsynx.generators.graphical.estimate import Model, fit
from medsynx.generators.graphical.junction_tree import Scope, Table, affordable
from medsynx.generators.graphical.query import Measurement

SURE = 3.0  #: standard deviations by which a squared distance must exceed what noise alone gives
WORTH = 0.5  #: a table is worth its noise when it explains this share of the squared noise it brings
TARGET_WEIGHT = 4.0
GROWTH_STEPS = 50  #: of the fit between two batches


def gain(measured: Measurement, expected: Table) -> float:
    """Records that ``expected`` (counts in the query's shape) puts in wrong cells, the noise taken out; 0 when noise may explain it.

    The squared distance is unbiased once cells x variance is subtracted.
    """
    apart = measured.values - expected
    squared = float(np.vdot(apart, apart)) - apart.size * measured.std**2
    if squared <= max(SURE * math.sqrt(2 * apart.size), WORTH * apart.size) * measured.std**2:
        return 0.0
    return max(float(np.abs(apart).sum()) - math.sqrt(2 / math.pi) * measured.std * apart.size, math.sqrt(squared))


def grow(
    sizes: tuple[int, ...],
    base: Sequence[Measurement],
    pairs: Sequence[Measurement],
    masks: Mapping[Scope, Table],
    limit: int,
    target: int | None = None,
) -> list[Scope]:
    """Pairs worth modelling, most informative first: fit, add the pairs the model explains worst, fit again.

    Greedy like AIM (McKenna et al. 2022), but from tables that are already noisy. A pair that would carry the junction tree over
    ``limit`` cells is dropped.

    Args:
        base: measurements the model holds anyway.
        pairs: noisy pair tables to choose from, at any resolution.
        target: a column whose pairs count :data:`TARGET_WEIGHT` times: predicting it is what the table is for.
    """
    chosen: list[Scope] = []
    held = [*dict.fromkeys(m.query.scope for m in base), *masks]
    open_ = {m.query.scope: m for m in pairs}
    kept = list(base)
    model = fit(sizes, kept, iterations=200, masks=masks)
    batch = max(3, len(sizes) // 6)
    while open_:
        expected = model.pairs()
        scores = {s: gain(m, m.query.merge(expected[s]) * model.total) for s, m in open_.items()}
        ranked = sorted(
            (s for s in scores if scores[s] > 0),
            key=lambda s: (-scores[s] * (TARGET_WEIGHT if target in s else 1), s),
        )
        taken = affordable(sizes, [*held, *chosen], ranked, limit, batch)
        if not taken:
            break
        # What was passed over did not fit, and will not: the tree only grows.
        for s in ranked[: ranked.index(taken[-1]) + 1]:
            measured = open_.pop(s)
            if s in taken:
                kept.append(measured)
        chosen += taken
        model = fit(sizes, kept, iterations=GROWTH_STEPS, start=model.theta, masks=masks)
    return chosen


def spanning_tree(
    columns: int, scores: Mapping[Scope, float], affordable_cells: Mapping[Scope, int], cells: int
) -> list[Scope]:
    """Maximum spanning forest over pairs with a positive score (Kruskal), best first; a pair that exceeds the ``cells`` left is skipped."""
    group = list(range(columns))
    tree: list[Scope] = []
    for pair in sorted((p for p, s in scores.items() if s > 0), key=lambda p: (-scores[p], p)):
        a, b = pair
        if group[a] != group[b] and affordable_cells[pair] <= cells:
            group = [group[a] if g == group[b] else g for g in group]
            cells -= affordable_cells[pair]
            tree.append(pair)
    return tree


def triangles(sizes: tuple[int, ...], chosen: Sequence[Scope], most_cells: float) -> list[Scope]:
    """Chosen pairs with every triangle of them replaced by its 3-way table, when that has at most ``most_cells`` cells.

    One 3-way table in place of three pairs takes a third of their number and so less noise a cell, and sees what no pair shows.
    """
    pairs = list(chosen)
    out: list[Scope] = []
    while pairs:
        first = pairs.pop(0)
        other = [
            tuple(sorted({*first, c}))
            for c in sorted({a for p in pairs for a in p} - set(first))
            if all(tuple(sorted((a, c))) in pairs for a in first)
        ]
        fitting = [t for t in other if math.prod(sizes[a] for a in t) <= most_cells]
        if fitting:
            best = min(fitting, key=lambda t: (math.prod(sizes[a] for a in t), t))
            pairs = [p for p in pairs if not set(p) <= set(best)]
            out.append(best)
        else:
            out.append(first)
    return out


def within_cliques(model: Model, measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those whose scope a clique already holds: they cost the model nothing."""
    return [m for m in measurements if model.tree.home(m.query.scope) is not None]


def all_pairs(columns: int) -> list[Scope]:
    """Every pair of columns, in order."""
    return list(combinations(range(columns), 2))
