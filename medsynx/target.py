"""What is predicted when utility is judged, from the manifest alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.codec import Codes
from medsynx.study import BooleanColumn, LevelColumn, Study


@dataclass(frozen=True)
class Target:
    """A two-class prediction task on codes.

    Attributes:
        column: position of the predicted column.
        positive: codes that count as the event.
        negative: the other codes; ``other`` and ``missing`` are in neither and such rows are left out.
        predictors: positions of the columns that predict. Follow-up time and event are left out when they are not the target: they
            give the outcome away.
    """

    column: int
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    predictors: tuple[int, ...]

    def classes(self, codes: Codes) -> NDArray[np.int64]:
        """1 for the event, 0 against it, -1 for a row that is left out. Shape (rows,)."""
        y = codes[:, self.column]
        return np.where(np.isin(y, self.positive), 1, np.where(np.isin(y, self.negative), 0, -1))


def target(study: Study) -> Target | None:
    """The study's task, or None.

    The column with role ``target`` (else ``event``). Its event: the levels named ``positive``; else the second of two levels, all
    but the first of an ordinal column, the upper half of the bins of a binned one. A nominal column of more levels without
    ``positive`` is no task.
    """
    name = study.by_role("target")
    if name is None:
        return None
    columns = study.data_columns
    column, names = columns[name], list(columns)
    if isinstance(column, LevelColumn | BooleanColumn):
        known = len(column.levels)
        named = column.positive if isinstance(column, LevelColumn) else None
        if named:
            positive = tuple(column.levels.index(v) for v in named)
        elif known == 2:
            positive = (1,)
        elif column.type == "ordinal" and known > 2:
            positive = tuple(range(1, known))
        else:
            return None
    else:
        known = codec.size(column) - 1
        positive = tuple(range(known // 2, known))
    negative = tuple(k for k in range(known) if k not in positive)
    telling = {name, study.by_role("survival_time"), study.by_role("event")}
    predictors = tuple(j for j, n in enumerate(names) if n not in telling)
    return Target(names.index(name), positive, negative, predictors) if predictors else None
