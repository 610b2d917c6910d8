"""Figures computed straight on real rows, for `medsynx simulate --holdout`. They are not private and say so."""

from __future__ import annotations

from typing import Any

from evaluation import fidelity, survival, utility
from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import Study
from medsynx.target import target

SOURCE = "direct, on real rows (not private)"


def figures(study: Study, train: Codes, holdout: Codes, synthetic: Codes) -> dict[str, Any]:
    """Fidelity of synthetic rows to the training rows with the hold-out as floor, and AUCs on the hold-out.

    The learner is gradient boosting; TSTR learns from the synthetic rows, TRTR from the real training rows.
    """
    sizes = codec.sizes(study)
    task = target(study)
    out: dict[str, Any] = {
        "tvd1": {
            "value": fidelity.mean_tvd1(train, synthetic, sizes),
            "floor": fidelity.mean_tvd1(train, holdout, sizes),
        },
        "tvd2": {
            "value": fidelity.mean_tvd2(train, synthetic, sizes),
            "floor": fidelity.mean_tvd2(train, holdout, sizes),
        },
    }
    for name, learned in (("tstr_auc", synthetic), ("trtr_auc", train)):
        value, why = (None, "the study has no target") if task is None else utility.auc(study, task, learned, holdout)
        out[name] = {"value": value, "learner": "gradient boosting"} | ({"why": why} if why else {})
    if survival.judged(study):
        out["km"] = {
            "value": survival.distance(survival.counts(train, study), survival.counts(synthetic, study), study),
            "floor": survival.distance(survival.counts(train, study), survival.counts(holdout, study), study),
        }
    for figure in out.values():
        figure["source"] = SOURCE
    return out
