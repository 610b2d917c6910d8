"""A hospital's table -> encoded, capped patients, split for good into training and hold-out patients.

The split and the choice of capped records are keyed hashes (HMAC-SHA256 with the site's secret) of the patient alone, so that adding or
removing a patient changes nobody else's part. A table without a patient id column has one patient a row; such a row is named by its content and
by how many equal rows came before it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
class Marks:
    """Keyed names of a data set's patients (by their ids, where records carry them) and of all its records (by their content)."""

    ids: frozenset[bytes] = frozenset()
    records: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class LocalTable:
    """One site's table, ready for steps. Lives only inside the site.

    Attributes:
        parts: patients by part; ``all`` is both.
        report: what encoding did.
        capped: records left out because their patient had more than the study's cap.
        marks: who is in it; for the site's own books.
        duplicates: records that are equal to an earlier one.
    """

    parts: Mapping[Part, Patients]
    report: codec.EncodeReport
    capped: int
    marks: Marks = Marks()
    duplicates: int = 0

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
    texts = ["\x1f".join(map(str, row)) for row in frame.itertuples(index=False, name=None)]
    drawn = draw_lots(texts, _patient_ids(frame, study), key, study.privacy.max_records_per_patient, strict=strict)
    codes = codes[drawn.kept]
    parts = {part: Patients(codes[mask], drawn.numbers(mask)) for part, mask in drawn.masks.items()}
    return LocalTable(parts, report, drawn.capped, drawn.marks, drawn.duplicates)


@dataclass(frozen=True)
class Lots:
    """Which records count, and whose they are.

    Attributes:
        kept: indices of the records within the cap, in file order.
        names: keyed name of the patient of each kept record.
        capped: how many records were left out.
        marks: of all records.
        duplicates: how many records were equal to an earlier one.
    """

    kept: list[int]
    names: list[bytes]
    capped: int
    marks: Marks
    duplicates: int

    @property
    def masks(self) -> dict[Part, NDArray[np.bool_]]:
        """The kept records of each part."""
        holdout = np.array([int.from_bytes(n[:8], "big") / 2**64 < HOLDOUT_SHARE for n in self.names], bool)
        return {"train": ~holdout, "holdout": holdout, "all": np.ones(len(self.names), bool)}

    def numbers(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Patients of the masked records as numbers from 0."""
        number: dict[bytes, int] = {}
        found = [number.setdefault(n, len(number)) for n, m in zip(self.names, mask, strict=True) if m]
        return np.array(found, np.int64)


def draw_lots(texts: Sequence[str], ids: Sequence[str] | None, key: bytes, cap: int, *, strict: bool) -> Lots:
    """Cap patients by the keyed names of their records.

    Args:
        texts: what each record holds.
        ids: whose it is; each record is a patient of its own when None.
        strict: refuse patients with more records than ``cap``.
    """
    earlier: dict[str, int] = {}
    rows = []
    for t in texts:
        earlier[t] = earlier.get(t, -1) + 1
        rows.append(_keyed(key, f"row\x1e{t}\x1e{earlier[t]}"))
    names = rows if ids is None else [_keyed(key, f"patient\x1e{i}") for i in ids]
    kept, capped = _cap(names, rows, cap)
    if capped and strict:
        raise MedsynxError("patient-duplicate", f"{capped} records exceed the cap of {cap} a patient")
    marks = Marks(frozenset() if ids is None else frozenset(names), frozenset(rows))
    return Lots(kept, [names[i] for i in kept], capped, marks, sum(earlier.values()))


def _patient_ids(frame: pd.DataFrame, study: Study) -> list[str] | None:
    if study.patient_id is None:
        return None
    ids = frame[study.patient_id].astype(str).str.strip()
    blank = int((ids.isin(study.missing_values) | frame[study.patient_id].isna()).sum())
    if blank:
        raise MedsynxError(
            "column-missing", f"columns.{study.patient_id}: {blank} of {len(ids)} rows have no patient id"
        )
    return list(ids)


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
