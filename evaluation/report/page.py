"""``render``: an evaluation as one HTML page without scripts or outside resources, readable under a strict content security policy."""

from __future__ import annotations

from typing import Any

from evaluation.report import plots

FIGURES = {
    "tstr_auc": ("AUC, trained on synthetic", "A model that only saw synthetic patients, tested on real ones."),
    "trtr_auc": ("AUC, trained on real", "The same learner trained on real patients: the ceiling."),
    "tvd1": ("Distance, single columns", "Mean total variation distance; 0 is identical, 1 is disjoint."),
    "tvd2": ("Distance, pairs of columns", "Mean total variation distance over pairs of (coarse) columns."),
}


def render(evaluation: dict[str, Any]) -> str:
    """The page as text.

    Args:
        evaluation: as built by :func:`evaluation.results.build`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    env = Environment(
        loader=PackageLoader("evaluation.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["figure"] = _figure
    guarantees = {g["adversary"]: g for g in evaluation["privacy"]["guarantees"]}
    cards = [(title, note, evaluation["figures"].get(key)) for key, (title, note) in FIGURES.items()]
    direct = [(title, note, (evaluation["direct"] or {}).get(key)) for key, (title, note) in FIGURES.items()]
    return env.get_template("page.html.j2").render(
        e=evaluation,
        cards=cards if evaluation["figures"] else [],
        direct=direct if evaluation["direct"] else [],
        guarantees=guarantees,
        margins=plots.margins(evaluation["columns"]),
        heat_map=plots.heat_map(evaluation["pairs"]) if evaluation["pairs"] else None,
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
