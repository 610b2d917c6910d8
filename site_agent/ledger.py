"""What this hospital's patients have spent: DP events, reserved before a step starts and settled after. A crash never refunds.

The ledger keeps events, not epsilons, so that it can be re-accounted by anybody with a better accountant. A step that was reserved and never settled
counts as spent. A name is no identity: the same patients can be registered twice, so all data sets of a site spend one budget unless they are known
to be apart (:class:`Account`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.plan import Part, Plan, PricedStep
from medsynx.privacy import epsilon_of_parts, event_from_json, event_to_json
from site_agent.chain import Chain


@dataclass(frozen=True)
class Budget:
    """The site's own limit for one patient over all time; no coordinator can change it."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Account:
    """Whose budget a step on a data set spends.

    Attributes:
        dataset: the data set's registered name.
        split: what its hold-out patients were drawn by (:func:`site_agent.datasets.split_of`). Costs on training and on hold-out patients never
            meet within one split; over several they are added.
        shares: whether a data set of this name may hold the same patients.
    """

    dataset: str
    split: str = ""
    shares: Callable[[str], bool] = lambda other: True

    def charged(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The reservations that its patients may have paid for."""
        return [
            e for e in entries if e["kind"] == "reserve" and (e["dataset"] == self.dataset or self.shares(e["dataset"]))
        ]


class Ledger:
    """Append-only record of reservations and settlements; one file a site."""

    def __init__(self, path: Path) -> None:
        self.chain = Chain(path)

    def reserve(self, account: Account, study: str, run: str, step: PricedStep, plan: Plan, budget: Budget) -> None:
        """Charge a step before it touches a record.

        On a run's first step the whole plan must fit, so that a run which cannot finish never starts.

        Raises:
            MedsynxError: ``budget-exceeded``, ``step-replayed`` or ``ledger-broken``; nothing is charged then.
        """

        def check(entries: list[dict[str, Any]]) -> None:
            mine = account.charged(entries)
            done = {e["step"] for e in mine if e["run"] == run and e["dataset"] == account.dataset}
            if step.step.name in done:
                raise MedsynxError("step-replayed", f"step {step.step.name!r} of run {run} was answered before")
            ahead = [s for s in plan.steps if s.step.name not in done]
            total = epsilon_with(entries, account, ahead, budget.delta)
            if total > budget.epsilon * (1 + 1e-6):
                before = spent_in(entries, account, budget.delta)
                raise MedsynxError(
                    "budget-exceeded",
                    f"data set {account.dataset}: this study would bring epsilon from {before:.3g} to {total:.3g}, the limit is {budget.epsilon:g}",
                )

        self.chain.append(
            {
                "kind": "reserve",
                "dataset": account.dataset,
                "split": account.split,
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

    def spent(self, dataset: str, delta: float, shares: Callable[[str], bool] = lambda other: True) -> float:
        """Epsilon the worst patient of this data set has spent so far, open reservations included; see :class:`Account`."""
        return spent_in(self.chain.entries(), Account(dataset, shares=shares), delta)


def spent_in(entries: list[dict[str, Any]], account: Account, delta: float) -> float:
    """What these entries cost the worst patient of a data set."""
    return epsilon_with(entries, account, (), delta)


def epsilon_with(entries: list[dict[str, Any]], account: Account, steps: Sequence[PricedStep], delta: float) -> float:
    """What the worst patient of a data set will have spent when these steps have been charged too."""
    mine = account.charged(entries)
    splits = _splits(mine) | ({account.split} if steps else set())
    return _epsilon(_events(mine) + [(s.step.part, s.event) for s in steps], splits, delta)


def _events(entries: list[dict[str, Any]]) -> list[tuple[Part, Any]]:
    return [(e["part"], event_from_json(json.dumps(e["event"]))) for e in entries]


def _splits(entries: list[dict[str, Any]]) -> set[str]:
    return {e.get("split", e["dataset"]) for e in entries}


def _epsilon(events: list[tuple[Part, Any]], splits: set[str], delta: float) -> float:
    """Parts compose in parallel within one split only: a training patient of one may be a hold-out patient of the next."""
    return epsilon_of_parts([("all" if len(splits) > 1 else part, event) for part, event in events], delta)
