"""The evaluation of a deployed run: two secure sums through the door, charged like everything else.

1. ``evaluate: reference`` (training patients): (class x code) counts of each predictor. From their noised total the coordinator learns the real
   reference scorecard.
2. ``evaluate: hold-out`` (hold-out patients): 1-way tables, coarse 2-way tables, for the scorecards learned from synthetic and from real counts a
   (class x score bin) histogram each, and the table that survival curves come from.

The scorecards a site applies are public: they come from noised totals only. So a patient moves a few counts and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import fidelity, scorecard, survival
from medsynx import codec
from medsynx.codec import Codes
from medsynx.generators.base import Arrays, Contribution, Patients, State, Total
from medsynx.plan import PricedStep, Sensitivity, Step
from medsynx.study import Study
from medsynx.target import target

REFERENCE, HOLDOUT = "evaluate: reference", "evaluate: hold-out"
UNIT = 1024  #: cargo units a count (see medsynx.secure_sum.noise on the grid)
COARSE = 4  #: groups a column has in the 2-way tables
#: At most 4,800 cells of pairs; more columns than 25 have their pairs chosen by :func:`chosen_pairs`
MAX_PAIRS = 300
FEW_WEIGHT = 4  #: score histograms and the survival table are few and carry a figure each: they get less noise
SOURCE = "hold-out, through the door (noised)"
DRAWS = 200  #: of the known noise, for floors and spreads


@dataclass(frozen=True)
class Block:
    """One table of the hold-out vector: its shape and its integer weight."""

    name: str
    shape: tuple[int, ...]
    weight: int


class HoldoutLayout:
    """Which tables the hold-out vector holds, in order. Public: from the manifest alone."""

    def __init__(self, study: Study) -> None:
        self.study, self.sizes = study, codec.sizes(study)
        self.task = target(study)
        self.coarse = [coarse_map(k) for k in self.sizes]
        self.groups = [int(m.max()) + 1 for m in self.coarse]
        self.pairs = chosen_pairs(len(self.sizes))
        self.blocks = [Block("one", (k,), 1) for k in self.sizes]
        self.blocks += [Block("two", (self.groups[a], self.groups[b]), 1) for a, b in self.pairs]
        self.blocks += [Block(n, (2, scorecard.BINS), FEW_WEIGHT) for n in ("synthetic", "real") if self.task]
        if survival.judged(study):
            self.blocks.append(Block("survival", survival.shape(study), FEW_WEIGHT))
        self.length = sum(math.prod(b.shape) for b in self.blocks)

    def tables(
        self, codes: Codes, cards: Arrays, weights: NDArray[np.float64] | None = None
    ) -> list[NDArray[np.float64]]:
        """Every table of these records, in counts; a record counts its weight, 1 when omitted."""
        coarse = np.stack([m[codes[:, j]] for j, m in enumerate(self.coarse)], axis=1) if len(codes) else codes
        out = fidelity.one_way(codes, self.sizes, weights)
        out += [
            fidelity.two_way(coarse, self.groups, p, weights).reshape(self.groups[p[0]], self.groups[p[1]])
            for p in self.pairs
        ]
        if self.task:
            y = self.task.classes(codes)
            for name in ("synthetic", "real"):
                bins = scorecard.score_bins(codes, self.sizes, self.task, np.asarray(cards[name], float))
                counted = None if weights is None else weights[y >= 0]
                flat = np.bincount(y[y >= 0] * scorecard.BINS + bins[y >= 0], counted, minlength=2 * scorecard.BINS)
                out.append(flat.reshape(2, scorecard.BINS).astype(float))
        if survival.judged(self.study):
            out.append(survival.counts(codes, self.study, weights))
        return out

    def join(self, tables: list[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Tables to one vector in units."""
        scaled = [t.ravel() * b.weight * UNIT for t, b in zip(tables, self.blocks, strict=True)]
        return np.concatenate(scaled).astype(np.int64)

    def split(self, vector: NDArray[Any]) -> list[NDArray[np.float64]]:
        """A vector in units back to tables in counts."""
        cuts = np.cumsum([math.prod(b.shape) for b in self.blocks])[:-1]
        parts = np.split(np.asarray(vector, float), cuts)
        return [p.reshape(b.shape) / (b.weight * UNIT) for p, b in zip(parts, self.blocks, strict=True)]

    def sensitivity(self, cap: int) -> Sensitivity:
        """One patient that amounts to at most ``cap`` whole records, which may all fall in the same cells."""
        squared = sum(b.weight**2 for b in self.blocks)
        return Sensitivity(
            l2=cap * UNIT * math.sqrt(squared),
            linf=cap * UNIT * max(b.weight for b in self.blocks),
            source="a record adds its block's weight to one cell of each table; the scorecards do not depend on hold-out patients",
        )


def coarse_map(size: int) -> NDArray[np.int64]:
    """Code -> one of at most :data:`COARSE` groups of neighbouring codes, as equal in number as can be.

    ``missing``, the last code, joins the last group: a rare group of its own would cost a row and a column of noise in every pair.
    The 1-way tables still see how much is missing.
    """
    present = size - 1
    groups = min(COARSE, present)
    return np.append((np.arange(present) * groups) // present, groups - 1)


def chosen_pairs(columns: int) -> list[tuple[int, int]]:
    """All pairs of columns, or the :data:`MAX_PAIRS` nearest on a ring of the columns: public, and fair to every column."""

    def apart(pair: tuple[int, int]) -> int:
        return min(pair[1] - pair[0], columns - pair[1] + pair[0])

    return sorted(sorted(combinations(range(columns), 2), key=apart)[:MAX_PAIRS])


class Evaluation:
    """The two steps, with a family's verbs."""

    def plan(self, study: Study) -> tuple[Step, ...]:
        """The steps; without a target only the hold-out tables. Shares are set by :mod:`evaluation.programme`.

        Their limit is the default 2**30 units: 2**20 counts of weight 1, or 2**18 in a score bin. The door clips there, which moves no two
        neighbouring data sets further apart.
        """
        cap, layout, steps = study.privacy.records_counted, HoldoutLayout(study), []
        if layout.task:
            size = sum(2 * layout.sizes[j] for j in layout.task.predictors)
            bound = Sensitivity(
                l2=cap * UNIT * math.sqrt(len(layout.task.predictors)),
                linf=cap * UNIT,
                source="a record adds one to one cell of each predictor's table",
            )
            steps.append(Step(REFERENCE, "secure-sum", "train", size, study.evaluation.reference_share, bound))
        steps.append(Step(HOLDOUT, "secure-sum", "holdout", layout.length, 1.0, layout.sensitivity(cap)))
        return tuple(steps)

    def next_step(self, study: Study, state: State) -> Step | None:
        """Reference first (its scorecard is applied in the hold-out step), then hold-out."""
        steps = {s.name: s for s in self.plan(study)}
        if REFERENCE in steps and "real" not in state.arrays:
            return steps[REFERENCE]
        return steps[HOLDOUT] if "holdout" not in state.arrays else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """The step's counts of this site, exact: the door adds the noise."""
        layout = HoldoutLayout(study)
        weights = patients.weights(UNIT, study.privacy) / UNIT  # whole units: exact in binary
        if priced.step.name == REFERENCE:
            assert layout.task
            tables = scorecard.class_tables(patients.codes, layout.sizes, layout.task, weights)
            return Contribution({"sum": (np.concatenate([t.ravel() for t in tables]) * UNIT).astype(np.int64)})
        if layout.task:  # a scorecard comes from outside: refuse a bad one whatever the records are
            width = sum(layout.sizes[j] for j in layout.task.predictors)
            for name in ("synthetic", "real"):
                card = state.arrays[name]
                if card.shape != (width,) or not np.isfinite(card).all():
                    raise ValueError(f"the scorecard {name!r} does not fit the study")
        return Contribution({"sum": layout.join(layout.tables(patients.codes, state.arrays, weights))})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Reference: learn the real scorecard. Hold-out: keep the noised tables."""
        if priced.step.name == REFERENCE:
            layout = HoldoutLayout(study)
            assert layout.task
            cuts = np.cumsum([2 * layout.sizes[j] for j in layout.task.predictors])[:-1]
            tables = [t.reshape(2, -1) / UNIT for t in np.split(total.arrays["sum"].astype(float), cuts)]
            card = scorecard.weights(tables, total.noise_std / UNIT)
            return State({**state.arrays, "real": card.astype(np.float32)}, state.facts)
        facts = {**state.facts, "noise_std": total.noise_std}
        return State({**state.arrays, "holdout": total.arrays["sum"]}, facts)


def start(study: Study, synthetic: Codes) -> State:
    """State before the evaluation: the scorecard learned from synthetic rows."""
    task, sizes = target(study), codec.sizes(study)
    if task is None:
        return State()
    card = scorecard.weights(scorecard.class_tables(synthetic, sizes, task))
    return State({"synthetic": card.astype(np.float32)})


def figures(study: Study, state: State, synthetic: Codes) -> dict[str, Any]:
    """Figures from the noised hold-out tables.

    Noise and the finite hold-out inflate a distance. ``floor`` is what a generator without any error would show (mean of seeded
    draws with the known noise), ``noisy`` what was seen, and ``value`` the rest: sqrt(noisy^2 - floor^2), 0 at least. ``resolution`` is what
    19 of 20 such draws stay under: a smaller value cannot be told from 0. A distance is not ``reliable`` when the floor is more than
    0.3 (of survival curves 0.1); an AUC not when its noise (one standard deviation over draws) is more than 0.05.
    """
    layout, std = HoldoutLayout(study), float(state.facts["noise_std"])
    seen, expected = layout.split(state.arrays["holdout"]), layout.tables(synthetic, state.arrays)
    records = max(1.0, float(np.mean([t.sum() for t in seen[: len(layout.sizes)]])))
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    for name, kind in (("tvd1", "one"), ("tvd2", "two")):
        at = [i for i, b in enumerate(layout.blocks) if b.name == kind]
        if at:
            pairs = [(seen[i], expected[i]) for i in at]
            out[name] = _distance(pairs, records, std / UNIT, rng)
    for name, kind in (("tstr_auc", "synthetic"), ("trtr_auc", "real")):
        found = [t for t, b in zip(seen, layout.blocks, strict=True) if b.name == kind]
        out[name] = (
            noisy_auc(found[0], std / UNIT / FEW_WEIGHT, rng)
            if found
            else {"value": None, "why": "the study has no target"}
        )
    if survival.judged(study):
        out["km"] = _survival_distance(study, seen[-1], expected[-1], std / UNIT / FEW_WEIGHT, rng)
    for figure in out.values():
        figure["source"] = SOURCE
    return out


def holdout_survival(study: Study, state: State) -> NDArray[np.float64] | None:
    """The noised hold-out table of survival, for a plot; None where the study has none."""
    layout = HoldoutLayout(study)
    return layout.split(state.arrays["holdout"])[-1] if survival.judged(study) else None


def holdout_margins(study: Study, state: State) -> list[NDArray[np.float64]]:
    """The noised 1-way hold-out tables as shares, for plots; negative cells count as none."""
    layout = HoldoutLayout(study)
    tables = [np.maximum(t, 0) for t in layout.split(state.arrays["holdout"])[: len(layout.sizes)]]
    return [t / max(t.sum(), 1e-9) for t in tables]


def pair_distances(study: Study, state: State, synthetic: Codes) -> dict[tuple[int, int], float]:
    """Noisy distance of each coarse pair, for the heat map."""
    layout = HoldoutLayout(study)
    seen, expected = layout.split(state.arrays["holdout"]), layout.tables(synthetic, state.arrays)
    at = [i for i, b in enumerate(layout.blocks) if b.name == "two"]
    return {p: _tvd(seen[i], expected[i]) for p, i in zip(layout.pairs, at, strict=True)}


def _tvd(seen: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    clipped = np.maximum(seen, 0)
    return fidelity.tvd(clipped, expected) if clipped.sum() > 0 else 1.0


def _distance(
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]], records: float, std: float, rng: np.random.Generator
) -> dict[str, Any]:
    noisy = float(np.mean([_tvd(s, e) for s, e in pairs]))
    floors = []
    for _ in range(DRAWS):
        drawn = []
        for _, expected in pairs:
            share = (expected / expected.sum()).ravel()
            draw = rng.multinomial(round(records), share) + rng.normal(0, std, share.size)
            drawn.append(_tvd(draw, expected.ravel()))
        floors.append(np.mean(drawn))
    return _beside_floor(noisy, floors) | {"reliable": float(np.mean(floors)) <= 0.3}


def _beside_floor(noisy: float, floors: list[Any]) -> dict[str, Any]:
    floor = float(np.mean(floors))

    def above_floor(seen: float) -> float:
        return math.sqrt(max(0.0, seen**2 - floor**2))

    return {
        "value": above_floor(noisy),
        "noisy": noisy,
        "floor": floor,
        "resolution": above_floor(float(np.quantile(floors, 0.95))),
    }


def _survival_distance(
    study: Study, seen: NDArray[np.float64], expected: NDArray[np.float64], std: float, rng: np.random.Generator
) -> dict[str, Any]:
    noisy, share = survival.distance(seen, expected, study), expected / max(expected.sum(), 1)
    records = max(1, round(float(seen.sum())))
    draws = [
        rng.multinomial(records, share.ravel() if share.sum() else np.full(share.size, 1 / share.size))
        + rng.normal(0, std, share.size)
        for _ in range(DRAWS)
    ]
    floors = [survival.distance(d.reshape(share.shape), expected, study) for d in draws]
    return _beside_floor(noisy, floors) | {"reliable": float(np.mean(floors)) <= 0.1}


def noisy_auc(histogram: NDArray[np.float64], std: float, rng: np.random.Generator) -> dict[str, Any]:
    """Area under the curve of a noised (class x bin) histogram, and how far the noise (``std`` a cell) carries it."""
    value = scorecard.auc(histogram)
    base = {"learner": "naive Bayes scorecard"}
    if value is None:
        return {"value": None, "why": "noise leaves no count in one class", "reliable": False, **base}
    again = [scorecard.auc(histogram + rng.normal(0, std, histogram.shape)) for _ in range(DRAWS)]
    # areas are clipped to 0..1 for the reader only: clipped draws near 1 would make the spread look small
    spread = float(np.std([a for a in again if a is not None] or [1.0]))
    return {"value": min(1.0, max(0.0, value)), "plus_minus": spread, "reliable": spread <= 0.05, **base}
