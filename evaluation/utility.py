"""Utility: how well a strong learner, taught by one set of records, predicts the target in another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import BooleanColumn, LevelColumn, Study
from medsynx.target import Target


def auc(study: Study, task: Target, train: Codes, test: Codes) -> tuple[float | None, str | None]:
    """AUC on ``test`` of gradient boosting trained on ``train``, or None and why. Codes of shape (rows, data columns)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    x, y = _features(study, task, train), task.classes(train)
    u, v = _features(study, task, test), task.classes(test)
    if len(set(y[y >= 0])) < 2:
        return None, "the rows to learn from hold one class only"
    if len(set(v[v >= 0])) < 2:
        return None, "the hold-out holds one class only"
    columns = list(study.data_columns.values())
    nominal = [columns[j].type == "categorical" for j in task.predictors]
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0, categorical_features=nominal)
    model.fit(x[y >= 0], y[y >= 0])
    return float(roc_auc_score(v[v >= 0], model.predict_proba(u[v >= 0])[:, 1])), None


def _features(study: Study, task: Target, codes: Codes) -> NDArray[np.float64]:
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
