"""The lower half: all there is to say of the row under the cursor."""

from __future__ import annotations

from typing import Any

from textual.widgets import Static

from tui.widgets.tables import figure, measured, moment

NAMES = {
    "tstr_auc": "AUC, trained on synthetic",
    "trtr_auc": "AUC, trained on real",
    "tvd1": "TVD 1-way",
    "tvd2": "TVD 2-way",
}


class Detail(Static):
    """Plain text; server strings are never read as markup."""

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self.can_focus = True

    def show(self, what: str, row: dict[str, Any] | None) -> None:
        """Describe a row of ``runs``, ``sites`` or ``generators``."""
        self.update("" if row is None else "\n".join({"runs": run, "sites": site, "generators": generator}[what](row)))


def run(r: dict[str, Any]) -> list[str]:
    """A run's lines."""
    done = r["round"] / r["rounds"] if r["rounds"] else 0
    bar = "█" * round(20 * done) + "░" * (20 - round(20 * done))
    out = [
        f"{r['study_name']}  {r['family']}  {r['status']}",
        f"{bar} {r['round']}/{r['rounds']}  {r['message'] or ''}",
        f"epsilon {figure(r['epsilon'])}   study {r['study_digest'][:16]}   last heard {moment(r['updated_at'])}",
    ]
    return out + [f"  {s['name']}: {s['status']}{' (' + s['reason'] + ')' if s['reason'] else ''}" for s in r["sites"]]


def site(r: dict[str, Any]) -> list[str]:
    """A site's lines."""
    return [f"{r['name']}: {r['status']}", f"last seen {moment(r['last_seen'])} in run {r['run_id']}"]


def generator(r: dict[str, Any]) -> list[str]:
    """A generator's lines."""
    p, gate = r["privacy"], r["gate"]
    out = [
        f"{r['title'] or r['name']}  ({r['status']})",
        f"epsilon {figure(p['epsilon'])} against researchers, {figure(p['epsilon_coordinator'])} against the coordinator,"
        f" delta {p['delta']:g}, per {p['unit']}; trust mode {p['trust']}",
    ]
    if r["evaluation"]:
        out.append("   ".join(f"{NAMES[k]} {measured(v)}" for k, v in r["evaluation"].items() if k in NAMES))
    if gate is not None:
        out.append("gate: " + ("met" if gate["passed"] else "NOT MET"))
        out += [
            f"  {c['name']} {figure(c['value'])} against {figure(c['threshold'])}{'' if c['passed'] else '  not met'}"
            for c in gate["checks"]
        ]
    return [
        *out,
        f"study {r['study_digest'][:16]}  signed by {r['signer'][:16]}  {'has' if r['has_report'] else 'no'} report",
    ]
