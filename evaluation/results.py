"""``evaluation.json``: everything the report shows and the server summarises, as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation import fidelity, gate, survival
from evaluation.federated import holdout_margins, holdout_survival, pair_distances
from evaluation.image_grid import grid
from medsynx import codec
from medsynx.codec import Codes
from medsynx.generators.base import State
from medsynx.image_samplers import Images
from medsynx.study import Study


def build(
    study: Study,
    *,
    figures: dict[str, Any] | None,
    direct: dict[str, Any] | None,
    judged: State | None,
    synthetic: Codes | Images,
    rounds: list[dict[str, Any]],
    sites: list[str],
    privacy: dict[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Assemble the evaluation.

    Args:
        figures: from the federated evaluation, or None.
        direct: from real rows outside the door, or None.
        judged: state of the federated evaluation, for the plots.
        synthetic: rows drawn for the evaluation, or images drawn for the report.
        notes: sentences of the family on how it measured.
    """
    told = {
        "rounds": rounds,
        "sites": sites,
        "privacy": privacy,
        "notes": list(notes),
        "study": {"name": study.name, "title": study.title, "digest": study.digest, "family": study.family.name},
        "figures": figures or {},
        "direct": direct,
    }
    if isinstance(synthetic, Images):
        assert study.image is not None
        shown = grid(synthetic, study.image.classes)
        if figures is None:
            unjudged = "No figure of this generator was measured privately, so it cannot be released."
            return {**told, "gate": gate.CLOSED, "images": shown, "notes": [unjudged, *notes]}
        return {**told, "gate": gate.check(study.gate, figures), "images": shown}
    names, sizes = list(study.data_columns), codec.sizes(study)
    real = holdout_margins(study, judged) if judged else [None] * len(names)
    made = fidelity.one_way(synthetic, sizes)
    pairs = pair_distances(study, judged, synthetic) if judged else {}
    return {
        **told,
        "gate": gate.check(study.gate, figures),
        "columns": [
            {
                "name": n,
                "title": c.title,
                "labels": codec.labels(c),
                "real_noised": None if r is None else _rounded(r),
                "synthetic": _rounded(m / max(m.sum(), 1)),
            }
            for (n, c), r, m in zip(study.data_columns.items(), real, made, strict=True)
        ],
        "survival": _survival(study, judged, synthetic),
        "pairs": [{"a": names[a], "b": names[b], "tvd": round(v, 4)} for (a, b), v in pairs.items()],
    }


def _survival(study: Study, judged: State | None, synthetic: Codes) -> dict[str, Any] | None:
    """Survival curves by treatment at the ends of the follow-up's bins, real (noised) and synthetic."""
    if not survival.judged(study):
        return None
    noised = holdout_survival(study, judged) if judged else None
    made = survival.curves(survival.counts(synthetic, study))
    real = [None] * len(made) if noised is None else survival.curves(noised)
    time, _, *treatment = (study.data_columns[n] for n in study.survival)
    names = codec.labels(treatment[0]) if treatment else ["all"]
    return {
        "time": study.survival[0],
        "cuts": [float(c) for c in time.cuts],  # type: ignore[union-attr]
        "curves": [
            {"name": n, "real_noised": None if r is None else _rounded(r), "synthetic": _rounded(s)}
            for n, r, s in zip(names, real, made, strict=False)
        ],
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(v), 5) for v in values]
