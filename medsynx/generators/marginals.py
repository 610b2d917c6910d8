"""``marginals``: securely summed tables of counts, a graphical model fitted to them, rows drawn from its conditional tables.

A patient's record falls in one cell of every table, so vectors of integers with a known sensitivity are all that leaves a site. What is
measured next, which tables are kept and what they say together is post-processing of noised totals (McKenna, Miklau, Sheldon 2021, "Winning
the NIST contest": select, measure, estimate). :mod:`medsynx.generators.schedule` chooses the rounds, ``graphical`` estimates.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medsynx.generators.base import Arrays, Artefact, Contribution, Patients, State, Total
from medsynx.generators.graphical import select
from medsynx.generators.graphical.estimate import Model, estimate_total, fit
from medsynx.generators.graphical.junction_tree import Scope, affordable
from medsynx.generators.graphical.query import Measurement
from medsynx.generators.schedule import Schedule, median_splits
from medsynx.generators.table_sum import TableSum, sensitivity
from medsynx.plan import PricedStep, Step
from medsynx.study import Study

MODEL_CELLS = 60_000  #: of the junction tree: what a sampler loads and an iteration of the fit touches
ITERATIONS = 300
CELL_RECORDS = (
    4.0  #: a 3-way table has at most so many cells that each expects this many standard deviations of noise in records
)


class Parameters(BaseModel):
    """What a study may say about ``marginals``.

    Attributes:
        patients: how many training patients are expected over all sites: a public guess that chooses the rounds, not taken from the data.
        cell_budget: most cells of all 2-way tables together; wider columns are coarsened to keep to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    patients: int = Field(default=5_000, ge=1, le=10**9)
    cell_budget: int = Field(default=40_000, ge=16, le=1_000_000)


def schedule(study: Study) -> Schedule:
    """The study's schedule."""
    parameters = Parameters.model_validate(study.family.parameters)
    return Schedule(study, parameters.patients, parameters.cell_budget)


class Marginals:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """The schedule's exchanges. Their sizes and sensitivities hold whatever a run chooses to measure."""
        return tuple(
            Step(s.name, "secure-sum", "train", s.size, s.share, sensitivity(study.privacy, s.norm, s.norm))
            for s in schedule(study).stages
        )

    def next_step(self, study: Study, state: State) -> Step | None:
        """The first whose total is not there yet."""
        return next((s for s in self.plan(study) if s.name not in state.arrays), None)

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """The step's tables of this site, exact: the door adds the noise. Raises ValueError when the state asks for anything not planned."""
        tables = _tables(schedule(study), priced.step.name, state)
        return Contribution({"sum": tables.count(patients, study.privacy)})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised total and how noisy it is, and choose what the next exchange measures."""
        name, plan = priced.step.name, schedule(study)
        arrays: Arrays = {**state.arrays, name: total.arrays["sum"]}
        noise = {**state.facts.get("noise_std", {}), name: total.noise_std}
        found = State(arrays, {**state.facts, "noise_std": noise, "sites": total.sites})
        stages = [s.name for s in plan.stages]
        following = stages[stages.index(name) + 1 :]
        if following and following[0] == "halves":
            arrays["splits"] = median_splits([m.values for m in _measured(plan, "margins", found)])
        elif following:
            modelled, measured = _choose(plan, found)
            arrays["modelled"], arrays["chosen"] = _as_rows(modelled), _as_rows(measured)
        return found

    def export(self, study: Study, state: State) -> Artefact:
        """The fitted junction tree's conditional tables in one NPZ; ``sampler.json`` names the columns and the parent of each."""
        plan = schedule(study)
        model = fit_model(plan, state)
        tree = model.tree
        place = {j: k for k, j in enumerate(tree.order)}
        tables, arrays = [], {}
        for k, j in enumerate(tree.order):
            parent = tree.parent[j]
            arrays[f"table_{k}"] = model.conditionals[j].astype(np.float32)
            tables.append(
                {
                    "columns": list(tree.cliques[j]),
                    "given": list(tree.separator[j]),
                    "parent": None if parent is None else place[parent],
                    "table": f"table_{k}",
                }
            )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        manifest = {"kind": "clique-tree", "file": "tables.npz", "tables": tables}
        return Artefact({"tables.npz": buffer.getvalue()}, manifest, notes=_notes(plan, state))


def fit_model(plan: Schedule, state: State) -> Model:
    """From all noised totals to one model."""
    sizes = plan.sizes
    held = [m for s in plan.stages for m in _measured(plan, s.name, state)]
    one = [m for m in held if len(m.query.scope) == 1]
    more = [m for m in held if len(m.query.scope) > 1]
    if "chosen" in state.arrays:
        wanted = [*_scopes(state.arrays["chosen"]), *_scopes(state.arrays["modelled"])]
    elif plan.course == "star":
        wanted = plan.always
    else:
        wanted = _grow(plan, one, more)
    wanted = [*([plan.survival] if plan.survival else []), *wanted]
    final = sorted((m for m in more if m.query.scope in wanted), key=lambda m: wanted.index(m.query.scope))
    if plan.course != "pairs":  # nothing has looked yet whether these tables say more than their noise
        alone = fit(sizes, one, iterations=200, masks=plan.masks)
        expected = alone.pairs()
        final = [
            m
            for m in final
            if m.query.scope == plan.survival
            or select.gain(m, m.query.merge(expected[m.query.scope]) * alone.total) > 0
        ]
    scopes = affordable(sizes, [*plan.masks], dict.fromkeys(m.query.scope for m in final), MODEL_CELLS)
    final = [m for m in final if m.query.scope in scopes]
    tree = fit(sizes, [*one, *final], iterations=0, masks=plan.masks).tree
    free = [m for m in more if m not in final and tree.home(m.query.scope) is not None]
    return fit(sizes, [*one, *final, *free], iterations=ITERATIONS, masks=plan.masks)


def _choose(plan: Schedule, state: State) -> tuple[list[Scope], list[Scope]]:
    """Which pairs the model holds, most informative first, and what the last exchange measures in full, within its cells."""
    cells = {p: plan.sizes[p[0]] * plan.sizes[p[1]] for p in plan.pairs}
    if plan.course == "halves":
        one, two = _measured(plan, "margins", state), _measured(plan, "halves", state)
        model = fit(plan.sizes, one, iterations=200, masks=plan.masks)
        expected = model.pairs()
        contrast = {m.query.scope: _contrast(m, m.query.merge(expected[m.query.scope]) * model.total) for m in two}
        scores = {p: s for p, s in contrast.items() if p not in plan.star}
        scores.pop(plan.survival, None)
        left = plan.clique_cells - sum(math.prod(plan.sizes[a] for a in p) for p in plan.always)
        scopes = [*select.spanning_tree(len(plan.sizes), scores, cells, left), *plan.always]
        return scopes, scopes
    held = _measured(plan, "tables", state)
    one, two = [m for m in held if len(m.query.scope) == 1], [m for m in held if len(m.query.scope) == 2]
    chosen = _grow(plan, one, held[len(one) :])
    std = two[0].std if two else 0.0
    scopes = select.triangles(plan.sizes, chosen, estimate_total(held) / max(CELL_RECORDS * std, 1e-9))
    left, out = plan.clique_cells, []
    for s in scopes:
        size = math.prod(plan.sizes[a] for a in s)
        if size <= left:
            left -= size
            out.append(s)
    return chosen, out


def _grow(plan: Schedule, one: list[Measurement], more: list[Measurement]) -> list[Scope]:
    """The survival table, then pairs by what they add."""
    forced = [m for m in more if m.query.scope == plan.survival]
    pairs = [m for m in more if m not in forced and len(m.query.scope) == 2]
    found = select.grow(plan.sizes, [*one, *forced], pairs, plan.masks, MODEL_CELLS, plan.target)
    return [m.query.scope for m in forced] + found


def _contrast(m: Measurement, expected: NDArray[np.float64]) -> float:
    """How far a 2x2 table is from independence along its one degree of freedom; 0 below two standard deviations of the noise."""
    difference = m.values - expected
    found = abs(float(difference[0, 0] - difference[0, 1] - difference[1, 0] + difference[1, 1]))
    return found if found > 4 * m.std else 0.0  # the noise of four cells adds up to twice that of one


def _tables(plan: Schedule, stage: str, state: State) -> TableSum:
    if stage == "halves":
        return plan.halves(state.arrays["splits"])
    if stage == "cliques":
        return plan.cliques(state.arrays["chosen"])
    return plan.first


def _measured(plan: Schedule, stage: str, state: State) -> list[Measurement]:
    noise = float(state.facts["noise_std"][stage])
    return _tables(plan, stage, state).measurements(state.arrays[stage], noise)


def _as_rows(scopes: list[Scope]) -> NDArray[np.int64]:
    return np.array([(*s, -1, -1)[:3] for s in scopes], np.int64).reshape(-1, 3)


def _scopes(rows: NDArray[np.int64]) -> list[Scope]:
    return [tuple(int(a) for a in row if a >= 0) for row in rows]


def _notes(plan: Schedule, state: State) -> tuple[str, ...]:
    """What a reader of the report must know about how the tables were chosen."""
    first = plan.stages[0].name
    found = estimate_total(_measured(plan, first, state))
    notes = [plan.reason[0].upper() + plan.reason[1:] + "."]
    if found < plan.patients / 2:
        notes.append(
            f"About {found:,.0f} records were found where {plan.patients:,} patients were expected: the tables are noisier than planned."
        )
    return tuple(notes)
