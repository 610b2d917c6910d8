"""Tables by the study's dictionary: what it does not name does not enter, and what does not have a column's declared form is emptied.

Patient identifiers become the same pseudonyms as in DICOM, dates move by the same days, ages over 89 are one group, postcodes keep three
digits. Detectors then look for mail, telephone and identifiers among what was emptied: much of it means a wrong dictionary.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from medsynx.study import BooleanColumn, DateColumn, LevelColumn, NumericColumn, Study, load_study
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import output_name
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe

OLDEST = 90
#: three-digit ZIP areas with fewer than 20,000 people (HHS guidance on 45 CFR 164.514(b), 2010 census)
SMALL_ZIP3 = frozenset("036 059 102 202 203 204 205 369 556 692 753 772 821 823 878 879 884 893".split())
DETECTORS = {
    "mail": re.compile(r"[\w.+-]+@[\w-]+\.\w"),
    "telephone": re.compile(r"\+?\d[\d ()/-]{7,}\d"),
    "identifier": re.compile(r"[A-Za-z]{0,3}\d{7,}"),
    "date": re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}"),
    "name": re.compile(r"[A-Z][a-z]+,? [A-Z][a-z]+"),
}
SUSPICIOUS = 0.02  # share of a column's rows
LARGEST = 1 << 30
FREE_TEXT_LENGTH = 200


def looks_like_table(data: bytes, text: str | None) -> bool:
    """Parquet by magic, a workbook by its parts, CSV by a header line of several names."""
    if data[:4] == b"PAR1" or (data[:4] == b"PK\x03\x04" and b"xl/workbook.xml" in data):
        return True
    if text is None:
        return False
    first = text.lstrip("\ufeff").split("\n", 1)
    return len(first) == 2 and "," in first[0] and len(first[0]) < 100_000 and first[1].strip() != ""


def clean_table(
    data: bytes, source: str, recipe: Recipe, key: SiteKey, withdrawn: frozenset[str] = frozenset()
) -> Cleaned:
    """De-identify one table, without the rows of patients who withdrew. Raises Quarantine."""
    if recipe.table.study is None:
        raise Quarantine("table-undeclared", "the recipe names no study")
    study = load_study(recipe.table.study)
    frame = _read(data)
    declared = [c for c in study.columns if c in frame.columns]
    free = [c for c in recipe.table.free_text if c in frame.columns]
    if not declared:
        raise Quarantine("table-undeclared")
    actions: Counter[str] = Counter(
        {"column not in the dictionary dropped": len(frame.columns) - len(declared) - len(free)}
    )
    pseudonyms = _pseudonyms(frame, study, recipe, key)
    if withdrawn & set(pseudonyms):
        stay = [p not in withdrawn for p in pseudonyms]
        actions["row of a patient who withdrew dropped"] = len(frame) - sum(stay)
        frame, pseudonyms = frame[stay], [p for p in pseudonyms if p not in withdrawn]
        if frame.empty:
            raise Quarantine("withdrawn")
    missing = set(study.missing_values) | {""}
    out = pd.DataFrame(index=frame.index)
    notes: dict[str, Any] = {
        "rows": len(frame),
        "columns": len(declared) + len(free),
        "small_cells": {},
        "patient_column": study.patient_id,
    }
    for name in declared:
        spec = study.columns[name]
        if name == study.patient_id:
            out[name] = pseudonyms
            actions["patient pseudonymised"] += 1
            continue
        column, emptied = _column(frame[name], spec, pseudonyms, missing, key, recipe)
        _suspect(name, emptied, len(frame))
        actions["value without the declared form emptied"] += len(emptied)
        out[name] = _grouped(name, spec, column, actions)
        if isinstance(spec, LevelColumn | BooleanColumn):
            small = int((column[column != ""].value_counts() < recipe.table.smallest_cell).sum())
            if small:
                notes["small_cells"][name] = small
    for name in free:
        out[name] = frame[name].fillna("").astype(str)
        actions["free text kept by the recipe"] += 1
    kept_type = "parquet" if data[:4] == b"PAR1" else "csv"
    return Cleaned(
        data=_write(out, kept_type),
        suffix=f".{kept_type}",
        name=output_name(source, key),
        kind="table",
        shape=(len(out), len(out.columns)),
        actions=+actions,
        kept=Counter({name: len(out) for name in out.columns}),
        patients=tuple(dict.fromkeys(pseudonyms)),
        notes=notes,
    )


def without_patient(data: bytes, suffix: str, column: str | None, pseudonym: str) -> bytes | None:
    """The table without one patient's rows; None when nothing is left or the table has no patient column."""
    frame = _read(data)
    if column is None or column not in frame.columns:
        return None
    rest = frame[frame[column].astype(str) != pseudonym]
    return None if rest.empty else _write(rest, suffix.lstrip("."))


def _read(data: bytes) -> pd.DataFrame:
    if len(data) > LARGEST:
        raise Quarantine("too-large", "table")
    try:
        if data[:4] == b"PAR1":
            frame = pd.read_parquet(io.BytesIO(data))
        elif data[:4] == b"PK\x03\x04":
            sheets = pd.read_excel(io.BytesIO(data), sheet_name=None, dtype=str, keep_default_na=False)
            filled = [s for s in sheets.values() if not s.empty]
            if len(filled) != 1:
                raise Quarantine("table-undeclared", f"{len(filled)} sheets with rows; save one as CSV")
            frame = filled[0]
        else:
            frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Quarantine:
        raise
    except Exception as error:  # parsers quote cells in their messages: the type is enough
        raise Quarantine("damaged", type(error).__name__) from None
    if frame.empty:
        raise Quarantine("empty", "no rows")
    return frame


def _pseudonyms(frame: pd.DataFrame, study: Study, recipe: Recipe, key: SiteKey) -> list[str]:
    """One a row; without a patient column each row is a patient of its own, named by its content."""
    column = study.patient_id
    if column is None:
        return [key.pseudonym("row", "\x1f".join(map(str, row))) for row in frame.itertuples(index=True, name=None)]
    if column not in frame.columns:
        raise Quarantine("patient-column", "missing")
    ids = frame[column].fillna("").astype(str).str.strip()
    if ids.isin([*study.missing_values, ""]).any():
        raise Quarantine("patient-column", "rows without a patient")
    known = {i: key.pseudonym(recipe.table.issuer, i) for i in ids.unique()}
    return [known[i] for i in ids]


def _column(
    values: pd.Series, spec: Any, pseudonyms: list[str], missing: set[str], key: SiteKey, recipe: Recipe
) -> tuple[pd.Series, list[str]]:
    """A column in its declared form, as text with '' for nothing, and what was emptied."""
    text = values.map(_spelling)
    blank = text.isin(missing)
    if isinstance(spec, NumericColumn):
        parsed = pd.to_numeric(text, errors="coerce")
        good = parsed.notna() & np.isfinite(parsed)
        new = text
    elif isinstance(spec, DateColumn):
        if "retain_longitudinal_modified_dates" not in recipe.options:
            return pd.Series("", index=values.index), []
        parsed = pd.to_datetime(text.where(~blank), errors="coerce", format="ISO8601").dt.tz_localize(None)
        good = parsed.notna()
        days = pd.to_timedelta([key.days(p) for p in pseudonyms], unit="D")
        new = (parsed - days).dt.strftime("%Y-%m-%d").fillna("")
    else:
        levels = set(spec.levels)
        good = text.isin(levels)
        new = text
    emptied = text[~good & ~blank].tolist()
    return new.where(good & ~blank, ""), emptied


def _spelling(value: Any) -> str:
    """A cell as a person would write it."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NaT:
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, pd.Timestamp):
        return value.date().isoformat()
    return str(value).strip()


def _suspect(name: str, emptied: list[str], rows: int) -> None:
    if any(len(v) > FREE_TEXT_LENGTH for v in emptied):
        raise Quarantine("free-text", f"column {name}")
    for kind, pattern in DETECTORS.items():
        hits = sum(bool(pattern.search(v)) for v in emptied)
        if hits > SUSPICIOUS * rows:
            raise Quarantine("identifier-in-column", f"column {name}: {hits} values look like a {kind}")


def _grouped(name: str, spec: Any, column: pd.Series, actions: Counter[str]) -> pd.Series:
    """Ages over 89 in one group, postcodes by their first three characters."""
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name + " " + (spec.title or "")).lower()))
    if isinstance(spec, NumericColumn) and words & {"age", "ages", "alter"}:
        old = pd.to_numeric(column, errors="coerce") > OLDEST - 1
        if old.any():
            actions["age over 89 grouped"] += int(old.sum())
            return column.mask(old, str(OLDEST))
    if words & {"zip", "zipcode", "postcode", "postal", "plz"}:
        actions["postcode generalised"] += int((column != "").sum())
        three = column.str[:3]
        return three.mask(three.isin(SMALL_ZIP3), "000")
    return column


def _write(frame: pd.DataFrame, kind: str) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        frame.astype(str).to_parquet(buffer, index=False)
        return buffer.getvalue()
    return frame.to_csv(index=False, lineterminator="\n").encode()
