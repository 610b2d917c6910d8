"""What this hospital's patients have spent: DP events per data set, reserved before a step starts and settled after. A crash never refunds.

The ledger keeps events, not epsilons, so that it can be re-accounted by anybody with a better accountant. A step that was reserved and never settled
counts as spent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.plan import Part, Plan, PricedStep
from medsynx.privacy import epsilon_of_parts, event_from_json, event_to_json
from site_agent.chain import Chain


@dataclass(frozen=True)
class Budget:
    """The site's own limit for one data set over its lifetime; no coordinator can change it."""

    epsilon: float
    delta: float


class Ledger:
    """Append-only record of reservations and settlements; one file a site."""

    def __init__(self, path: Path) -> None:
        self.chain = Chain(path)

    def reserve(self, dataset: str, study: str, run: str, step: PricedStep, plan: Plan, budget: Budget) -> None:
        """Charge a step before it touches a record.

        On a run's first step the whole plan must fit, so that a run which cannot finish never starts.

        Raises:
            MedsynxError: ``budget-exceeded``, ``step-replayed`` or ``ledger-broken``; nothing is charged then.
        """

        def check(entries: list[dict[str, Any]]) -> None:
            mine = [e for e in entries if e["kind"] == "reserve" and e["dataset"] == dataset]
            done = {e["step"] for e in mine if e["run"] == run}
            if step.step.name in done:
                raise MedsynxError("step-replayed", f"step {step.step.name!r} of run {run} was answered before")
            ahead = [(s.step.part, s.event) for s in plan.steps if s.step.name not in done]
            total = epsilon_of_parts(_events(mine) + ahead, budget.delta)
            if total > budget.epsilon * (1 + 1e-6):
                before = epsilon_of_parts(_events(mine), budget.delta)
                raise MedsynxError(
                    "budget-exceeded",
                    f"data set {dataset}: this study would bring epsilon from {before:.3g} to {total:.3g}, the limit is {budget.epsilon:g}",
                )

        self.chain.append(
            {
                "kind": "reserve",
                "dataset": dataset,
                "study": study,
                "run": run,
                "step": step.step.name,
                "part": step.step.part,
                "event": json.loads(event_to_json(step.event)),
            },
            check,
        )

    def settle(self, dataset: str, run: str, step: str) -> None:
        """Note that a reserved step's cargo was handed over. Changes no figure."""
        self.chain.append({"kind": "settle", "dataset": dataset, "run": run, "step": step})

    def spent(self, dataset: str, delta: float) -> float:
        """Epsilon spent so far on this data set, open reservations included."""
        entries = self.chain.entries()
        return epsilon_of_parts(
            _events([e for e in entries if e["kind"] == "reserve" and e["dataset"] == dataset]), delta
        )


def _events(entries: list[dict[str, Any]]) -> list[tuple[Part, Any]]:
    return [(e["part"], event_from_json(json.dumps(e["event"]))) for e in entries]
