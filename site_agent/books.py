"""What the privacy officer reads in a site's books: spending by data set and by run, where the clock was set, and a chart of it all."""

from __future__ import annotations

import io
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from site_agent import clock
from site_agent.chain import Entry
from site_agent.ledger import Account, Ledger, spent_in
from site_agent.patients import PatientBook
from site_agent.policy import SiteFolder, SitePolicy

POINTS = 60  #: of a curve; each is an accounting of its own


def summary(folder: SiteFolder) -> dict[str, Any]:
    """What ``medsynx site ledger --json`` prints. Raises ``ledger-broken`` when the chain does not verify."""
    policy, ledger = folder.policy(), Ledger(folder.path / "ledger.sqlite")
    entries, budget = ledger.chain.entries(), policy.budget
    return {
        "delta": budget.delta,
        "limit": budget.epsilon,
        "spent": {n: spent_in(entries, account(policy, n), budget.delta) for n in names(policy, entries)},
        "runs": _runs(policy, entries),
        "warnings": warnings(ledger, entries) + _lost(folder, ledger),
        "entries": entries,
    }


def names(policy: SitePolicy, entries: list[Entry]) -> list[str]:
    """The registered data sets and those that spent before they were taken out of the policy."""
    return list(dict.fromkeys([*policy.datasets, *(e["dataset"] for e in entries if e["kind"] == "reserve")]))


def account(policy: SitePolicy, dataset: str) -> Account:
    """The account of a data set, for reading."""
    return Account(dataset, shares=partial(policy.share, dataset))


def warnings(ledger: Ledger, entries: list[Entry]) -> list[str]:
    """What keeps the site from answering, or should be looked into."""
    out = [
        f"before entry {n + 1} ({entries[n]['at'][:19]}) the clock was set {'back' if moved.total_seconds() < 0 else 'forward'} "
        f"by {abs(moved.total_seconds()):,.0f} seconds"
        for n, moved in clock.jumps(entries).items()
    ]
    late = clock.behind(entries, clock.read())
    if late > clock.TOLERANCE:
        out.append(
            f"the clock is {late.total_seconds():,.0f} seconds behind this ledger: nothing is answered until it is right"
        )
    if ledger.chain.behind_witness():
        out.append(
            "this ledger lacks entries that its witness holds, or has none: nothing is answered until it is acknowledged"
        )
    return out


def _lost(folder: SiteFolder, ledger: Ledger) -> list[str]:
    lacking = PatientBook(folder.path / "patients.sqlite", ledger.chain).lacking()
    return [f"patients.sqlite lacks patients of {', '.join(lacking)}: these cannot be apart"] if lacking else []


def _runs(policy: SitePolicy, entries: list[Entry]) -> list[dict[str, Any]]:
    """One line a run and data set, in the order in which they began: steps charged, steps handed over, and what the run alone cost."""
    runs: dict[tuple[str, str, str], list[Entry]] = {}
    for e in entries:
        if e["kind"] == "reserve":
            runs.setdefault((e["dataset"], e["study"], e["run"]), []).append(e)
    settled = {(e["dataset"], e["run"], e["step"]) for e in entries if e["kind"] == "settle"}
    return [
        {
            "dataset": dataset,
            "study": study,
            "run": run,
            "began": steps[0]["at"],
            "charged": len(steps),
            "handed_over": sum((dataset, run, s["step"]) in settled for s in steps),
            "epsilon": spent_in(steps, Account(dataset), policy.budget.delta),
        }
        for (dataset, study, run), steps in runs.items()
    ]


def plot(folder: SiteFolder, out: Path) -> None:
    """Draw each data set's spending over time against the limit, as a static SVG."""
    from matplotlib.dates import date2num
    from matplotlib.figure import Figure

    policy, entries = folder.policy(), Ledger(folder.path / "ledger.sqlite").chain.entries()
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(policy.budget.epsilon, color="#b2182b", linestyle="--", label=f"limit {policy.budget.epsilon:g}")
    for dataset in names(policy, entries):
        mine = account(policy, dataset).charged(entries)
        shown = sorted({round(k * (len(mine) - 1) / (POINTS - 1)) for k in range(POINTS)}) if mine else []
        values = [spent_in(mine[: k + 1], account(policy, dataset), policy.budget.delta) for k in shown]
        times = [datetime.fromisoformat(mine[k]["at"]) for k in shown]
        axes.step(date2num(times), values, where="post", marker=".", label=dataset)
    axes.set(ylabel=f"epsilon spent (delta {policy.budget.delta:g})", title=f"Site {policy.site}")
    axes.set_ylim(bottom=0)
    axes.xaxis_date()
    axes.tick_params(axis="x", rotation=30)
    axes.legend(loc="best")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    out.write_text(text.getvalue(), "utf-8")
