"""A hospital's table -> encoded, capped patients, split for good into training and hold-out patients.

The split and the choice of capped records are keyed hashes (HMAC-SHA256 with the site's secret) of the patient alone, so that adding or
removing a patient changes nobody else's part. A table without a patient id column has one patient a row; such a row is named by its content and
by how many equal rows came before it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators.base import Patients
from medsynx.plan import Part
from medsynx.study import Study

if TYPE_CHECKING:
    import pandas as pd

#: Every data set keeps the same fifth of its patients as hold-out in every study: a patient's part never changes,
#: so that costs on the two parts never meet.
HOLDOUT_SHARE = 0.2


@dataclass(frozen=True)
class LocalTable:
    """One site's table, ready for steps. Lives only inside the site.

    Attributes:
        parts: patients by part; ``all`` is both.
        report: what encoding did.
        capped: records left out because their patient had more than the study's cap.
    """

    parts: dict[Part, Patients]
    report: codec.EncodeReport
    capped: int

    def require(self, minimum: int) -> None:
        """Raise ``patients-too-few`` below the site's floor."""
        if self.parts["all"].count < minimum:
            raise MedsynxError("patients-too-few", f"the data set has fewer than {minimum} patients")


def prepare(frame: pd.DataFrame, study: Study, key: bytes, *, strict: bool = False, site: str = "") -> LocalTable:
    """Encode, cap and split a table.

    Args:
        frame: as from :func:`medsynx.tables.read_table`.
        key: the site's secret.
        site: its public name: what a column of role ``site`` holds where the table has no such column.
        strict: see :func:`medsynx.codec.encode`; also refuses patients with more records than the study's cap.

    Raises:
        MedsynxError: the codec's, or ``patient-duplicate``, or ``column-missing`` for an empty patient id.
    """
    column = study.by_role("site")
    named = frame.assign(**{column: site}) if column and column not in frame.columns else frame
    codes, report = codec.encode(named, study, strict=strict)
    names, rows = _names(frame, study, key)
    cap = study.privacy.max_records_per_patient
    kept, capped = _cap(names, rows, cap)
    if capped and strict:
        raise MedsynxError("patient-duplicate", f"{capped} records exceed the cap of {cap} a patient")
    names, codes = [names[i] for i in kept], codes[kept]
    holdout = np.array([int.from_bytes(n[:8], "big") / 2**64 < HOLDOUT_SHARE for n in names], bool)
    masks: dict[Part, np.ndarray] = {"train": ~holdout, "holdout": holdout, "all": np.ones(len(names), bool)}
    parts: dict[Part, Patients] = {part: _group(names, codes, mask) for part, mask in masks.items()}
    return LocalTable(parts, report, capped)


def _names(frame: pd.DataFrame, study: Study, key: bytes) -> tuple[list[bytes], list[bytes]]:
    """Keyed name of each row's patient, and of each row."""
    text = ["\x1f".join(map(str, row)) for row in frame.itertuples(index=False, name=None)]
    earlier: dict[str, int] = {}
    rows = []
    for t in text:
        earlier[t] = earlier.get(t, -1) + 1
        rows.append(_keyed(key, f"row\x1e{t}\x1e{earlier[t]}"))
    if study.patient_id is None:
        return rows, rows
    ids = frame[study.patient_id].astype(str).str.strip()
    blank = int((ids.isin(study.missing_values) | frame[study.patient_id].isna()).sum())
    if blank:
        raise MedsynxError(
            "column-missing", f"columns.{study.patient_id}: {blank} of {len(ids)} rows have no patient id"
        )
    return [_keyed(key, f"patient\x1e{i}") for i in ids], rows


def _keyed(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _cap(names: list[bytes], rows: list[bytes], cap: int) -> tuple[list[int], int]:
    """Indices of at most ``cap`` rows a patient (those with the smallest keyed names), in table order, and how many were left out."""
    seen: dict[bytes, int] = {}
    kept = []
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        seen[names[i]] = seen.get(names[i], 0) + 1
        if seen[names[i]] <= cap:
            kept.append(i)
    return sorted(kept), len(rows) - len(kept)


def _group(names: list[bytes], codes: codec.Codes, mask: np.ndarray) -> Patients:
    number: dict[bytes, int] = {}
    patient = [number.setdefault(n, len(number)) for n, m in zip(names, mask, strict=True) if m]
    return Patients(codes[mask], np.array(patient, np.int64))
