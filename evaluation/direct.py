"""Figures computed straight on real rows, for `medsynx simulate --holdout`. They are not private and say so."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation import fidelity
from evaluation.target import Target, target
from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import BooleanColumn, LevelColumn, Study

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
        value, why = (None, "the study has no target") if task is None else auc(study, task, learned, holdout)
        out[name] = {"value": value, "learner": "gradient boosting"} | ({"why": why} if why else {})
    for figure in out.values():
        figure["source"] = SOURCE
    return out


def auc(study: Study, task: Target, train: Codes, test: Codes) -> tuple[float | None, str | None]:
    """AUC on ``test`` of gradient boosting trained on ``train``, or None and why."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    x, y = _features(study, task, train), task.classes(train)
    u, v = _features(study, task, test), task.classes(test)
    if len(set(y[y >= 0])) < 2:
        return None, "the rows to learn from hold one class only"
    if len(set(v[v >= 0])) < 2:
        return None, "the hold-out holds one class only"
    columns = list(study.data_columns.values())
    nominal = [getattr(columns[j], "type", "") == "categorical" for j in task.predictors]
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0, categorical_features=nominal)
    model.fit(x[y >= 0], y[y >= 0])
    return float(roc_auc_score(v[v >= 0], model.predict_proba(u[v >= 0])[:, 1])), None


def _features(study: Study, task: Target, codes: Codes) -> np.ndarray:
    """Codes as floats; a missing binned or ordinal value is NaN, a nominal one is a category of its own (at most 255)."""
    out = codes[:, task.predictors].astype(float)
    columns = list(study.data_columns.values())
    for k, j in enumerate(task.predictors):
        column = columns[j]
        if isinstance(column, LevelColumn | BooleanColumn) and column.type == "categorical":
            out[:, k] = np.minimum(out[:, k], 254)
        else:
            out[codes[:, j] == codec.size(column) - 1, k] = np.nan
    return out
