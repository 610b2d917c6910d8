"""Tables as one vector of integers: the cargo of every step of ``marginals``, with its sensitivity.

A record adds its table's whole number of units to one cell of each table. Tables are disjoint entries of the vector, so the squares of the
units add up to the squared L2 norm of one record. A patient of k records adds k of them (at most the study's cap), or, where records are
averaged, ``unit // k`` for each: within a table that is at most ``unit`` in L1 and so in L2, however the records lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynx.generators.base import Patients
from medsynx.generators.graphical.query import Measurement, Query
from medsynx.plan import Sensitivity
from medsynx.study import PrivacySpec

#: L2 norm of a record in units: a site's share of the noise has at least :data:`medsynx.secure_sum.noise.MIN_GRID` units, also of many sites.
NORM = 2**14
#: A count's units at most: an honest site's cell stays below the cargo's limit up to 131,072 records.
MAX_UNIT = 2**13


class TableSum:
    """Where each table lies in the vector and how many units a count is worth.

    Args:
        queries: the tables, in order.
        weights: share of the squared norm of each (relative); equal when omitted.
        size: length of the vector; zeros fill what the tables leave. The tables' own cells when omitted.

    Raises:
        ValueError: the tables do not fit in ``size``.
    """

    def __init__(
        self, queries: Sequence[Query], weights: Sequence[float] | None = None, size: int | None = None
    ) -> None:
        self.queries = list(queries)
        parts = np.ones(len(self.queries)) if weights is None else np.asarray(weights, float)
        exact = NORM * np.sqrt(parts / max(parts.sum(), 1e-300))
        self.units = [max(1, min(MAX_UNIT, math.floor(u))) for u in exact]
        self.cells = sum(q.cells for q in self.queries)
        self.size = self.cells if size is None else size
        if self.cells > self.size:
            raise ValueError(f"{self.cells} cells do not fit in a vector of {self.size}")

    def sensitivity(self, privacy: PrivacySpec) -> Sensitivity:
        """Of one patient, in units."""
        norm = math.sqrt(sum(u**2 for u in self.units))
        return sensitivity(privacy, norm, max(self.units, default=0))

    def count(self, patients: Patients, privacy: PrivacySpec) -> NDArray[np.int64]:
        """All tables of these patients as one vector in units."""
        out = np.zeros(self.size, np.int64)
        at = 0
        for query, unit in zip(self.queries, self.units, strict=True):
            out[at : at + query.cells] = query.count(patients.codes, patients.weights(unit, privacy))
            at += query.cells
        return out

    def measurements(self, vector: NDArray[Any], noise_std: float) -> list[Measurement]:
        """A noised total back to tables in counts."""
        out, at = [], 0
        for query, unit in zip(self.queries, self.units, strict=True):
            values = np.asarray(vector[at : at + query.cells], float).reshape(query.shape) / unit
            out.append(Measurement(query, values, noise_std / unit))
            at += query.cells
        return out


def sensitivity(privacy: PrivacySpec, norm: float, largest: float) -> Sensitivity:
    """Of a patient whose single records have L2 norm ``norm`` and put at most ``largest`` in a cell."""
    records = privacy.records_counted
    return Sensitivity(
        l2=records * norm,
        linf=records * largest,
        source="a record adds its table's units to one cell of each table; tables are disjoint entries; "
        + (
            "a patient's k records add unit // k each"
            if privacy.records == "averaged"
            else "all of a patient's records may be alike"
        ),
    )
