"""``render``: an evaluation as one HTML page without scripts or outside resources, readable under a strict content security policy."""

from __future__ import annotations

from typing import Any

from evaluation.report import plots

FIGURES = {
    "tstr_auc": ("AUC, trained on synthetic", "A model that only saw synthetic patients, tested on real ones."),
    "trtr_auc": ("AUC, trained on real", "The same learner trained on real patients: the ceiling."),
    "tstr_balanced_accuracy": (
        "Balanced accuracy, trained on synthetic",
        "Mean share of each class that is recognised.",
    ),
    "trtr_balanced_accuracy": ("Balanced accuracy, trained on real", "The same learner trained on real patients."),
    "tstr_accuracy": ("Accuracy, trained on synthetic", "Share of images whose class is recognised."),
    "trtr_accuracy": ("Accuracy, trained on real", "The same learner trained on real patients."),
    "frechet": (
        "Frechet distance",
        "Between Gaussians of synthetic and real images in the space of a fixed random network; 0 is alike.",
    ),
    "kernel_distance": (
        "Kernel distance",
        "Maximum mean discrepancy in the same space; around 0 is alike. Computed directly it is squared and without bias, so it may be below.",
    ),
    "memorisation": (
        "Memorisation",
        "How much more often a training patient than a hold-out patient is the nearer one to a synthetic image; 0 is equally often.",
    ),
    "tvd1": ("Distance, single columns", "Mean total variation distance; 0 is identical, 1 is disjoint."),
    "tvd2": ("Distance, pairs of columns", "Mean total variation distance over pairs of columns."),
    "km": (
        "Kaplan-Meier distance",
        "Mean area between the survival curves of synthetic and real patients, as a share of the follow-up.",
    ),
}

UNSTATED: dict[str, Any] = {
    "private": None,
    "trust": None,
    "aggregation": "not stated",
    "max_records_per_patient": None,
    "note": "",
    "guarantees": [],
    "events": [],
}
#: What stands in for an absent or null part: never anything that looks like a promise kept.
ABSENT: dict[str, Any] = {
    "study": {"name": "unnamed", "title": "", "digest": "", "family": "unknown"},
    "figures": {},
    "direct": {},
    "gate": {"passed": False, "checks": []},
    "columns": [],
    "pairs": [],
    "survival": {},
    "images": [],
    "rounds": [],
    "sites": [],
    "privacy": {},
    "notes": [],
}


def render(evaluation: dict[str, Any]) -> str:
    """The page as text.

    Args:
        evaluation: as built by :func:`evaluation.results.build`. A null part leaves its section out; without a privacy statement the page
            says that nothing is promised, without a gate that the generator is withheld.
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
    page = {key: empty if evaluation.get(key) is None else evaluation[key] for key, empty in ABSENT.items()}
    page["privacy"] = UNSTATED | {k: v for k, v in page["privacy"].items() if v is not None}
    page["rounds"] = [{**r, "missing": r.get("missing") or {}} for r in page["rounds"]]
    return env.get_template("page.html.j2").render(
        e=page,
        cards=_cards(page["figures"]),
        direct=_cards(page["direct"]),
        guarantees={g["adversary"]: g for g in page["privacy"]["guarantees"]},
        checks=[_check(c, page["figures"].get(c["name"]) or {}) for c in page["gate"]["checks"]],
        margins=plots.margins(page["columns"]) if page["columns"] else None,
        survival=plots.survival(page["survival"]) if page["survival"] else None,
        nearness=plots.nearness(near) if (near := _nearness(page)) else None,
        heat_map=plots.heat_map(page["pairs"]) if page["pairs"] else None,
    )


def _nearness(page: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Memorisation figures that have histograms, by what they were measured on."""
    found = [("through the door, noised", page["figures"]), ("directly, not private", page["direct"])]
    return [(how, f) for how, figures in found if (f := figures.get("memorisation") or {}).get("histogram")]


def _cards(figures: dict[str, Any]) -> list[tuple[str, str, dict[str, Any] | None]]:
    return [(title, note, figures[key]) for key, (title, note) in FIGURES.items() if key in figures]


def _check(check: dict[str, Any], figure: dict[str, Any]) -> dict[str, Any]:
    """A threshold in words, and why it is not met where its value alone does not show it."""
    value, threshold, smaller = check["value"], check["threshold"], not check["name"].startswith("tstr")
    why = ""
    if value is None:
        why = "no figure"
    elif not figure.get("reliable", True):
        why = "not reliable"
    elif smaller and value <= threshold < figure.get("resolution", 0):
        why = f"noise hides values below {figure['resolution']:.3f}"
    title = FIGURES[check["name"]][0] if check["name"] in FIGURES else check["name"]
    return {**check, "title": title, "bound": "at most" if smaller else "at least", "why": why}


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
