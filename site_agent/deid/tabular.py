"""Tables by the study's dictionary: what it does not name does not enter, and what does not have a column's declared form is emptied.

Patient identifiers become the same pseudonyms as in DICOM, and dates move by the same days. Detectors then look for mail,
telephone and identifiers among what was emptied: much of it means a wrong dictionary.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pandas as pd

from medsynx.study import DateColumn, Study, load_study
from site_agent.deid.columns import coarse, declared_form, is_birth, is_small, moved, patients_over_89, texts
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import output_name
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from site_agent.deid.tablefiles import looks_like_table, read_table, write_table

__all__ = ["clean_table", "looks_like_table", "without_patient"]

DETECTORS = {
    "mail": re.compile(r"[\w.+-]+@[\w-]+\.\w"),
    "telephone": re.compile(r"\+?\d[\d ()/-]{7,}\d"),
    "identifier": re.compile(r"[A-Za-z]{0,3}\d{7,}"),
    "date": re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}"),
    "name": re.compile(r"[A-Z][a-z]+,? [A-Z][a-z]+"),
}
SUSPICIOUS = 0.02  # share of a column's rows
FREE_TEXT_LENGTH = 200


def clean_table(
    data: bytes, source: str, recipe: Recipe, key: SiteKey, withdrawn: frozenset[str] = frozenset()
) -> Cleaned:
    """De-identify one table, without the rows of patients who withdrew. Raises Quarantine."""
    if recipe.table.study is None:
        raise Quarantine("table-undeclared", "the recipe names no study")
    study = load_study(recipe.table.study)
    frame = read_table(data)
    declared = [c for c in study.columns if c in frame.columns]
    free = [c for c in recipe.table.free_text if c in frame.columns and c not in study.columns and not is_birth(c)]
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
    shifted = "retain_longitudinal_modified_dates" in recipe.options
    old = patients_over_89(frame, study, pseudonyms, missing)
    out = pd.DataFrame(index=frame.index)
    notes: dict[str, Any] = {
        "rows": len(frame),
        "columns": len(declared) + len(free),
        "small_cells": {},
        "emptied": {},
        "patient_column": study.patient_id,
    }
    for name in declared:
        spec = study.columns[name]
        if name == study.patient_id:
            out[name] = pseudonyms
            actions["patient pseudonymised"] += 1
            continue
        text = texts(frame[name])
        blank = text.isin(missing)
        good = declared_form(text, spec) & ~blank
        emptied = text[~good & ~blank].tolist()
        if not is_birth(name, spec):  # a birth leaves in no form
            _suspect(name, emptied, len(frame))
        if emptied:
            actions["value without the declared form emptied"] += len(emptied)
            notes["emptied"][name] = len(emptied)
        column = text.where(good, "")
        if isinstance(spec, DateColumn) and not is_birth(name, spec):
            actions["date of a patient over 89 emptied"] += sum(
                p in old for p, g in zip(pseudonyms, good, strict=True) if g
            )
            column = moved(column, pseudonyms, key, old if shifted else frozenset(pseudonyms))
        out[name], action = coarse(name, spec, column)
        actions[action or "kept"] += int((out[name] != column).sum())
        if is_small(spec):
            small = int((column[column != ""].value_counts() < recipe.table.smallest_cell).sum())
            if small:
                notes["small_cells"][name] = small
    for name in free:
        out[name] = frame[name].fillna("").astype(str)
        actions["free text kept by the recipe"] += 1
    kept_type = "parquet" if data[:4] == b"PAR1" else "csv"
    return Cleaned(
        data=write_table(out, kept_type),
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
    frame = read_table(data)
    if column is None or column not in frame.columns:
        return None
    rest = frame[frame[column].astype(str) != pseudonym]
    return None if rest.empty else write_table(rest, suffix.lstrip("."))


def _pseudonyms(frame: pd.DataFrame, study: Study, recipe: Recipe, key: SiteKey) -> list[str]:
    """One a row; without a patient column each row is a patient of its own, named by its content."""
    column = study.patient_id
    if column is None:
        return [key.pseudonym("row", "\x1f".join(map(str, row))) for row in frame.itertuples(index=True, name=None)]
    if column not in frame.columns:
        raise Quarantine("patient-column", "missing")
    ids = texts(frame[column])
    if ids.isin([*study.missing_values, ""]).any():
        raise Quarantine("patient-column", "rows without a patient")
    issuer = recipe.table.issuer or recipe.default_issuer
    known = {i: key.pseudonym(issuer, i) for i in ids.unique()}
    return [known[i] for i in ids]


def _suspect(name: str, emptied: list[str], rows: int) -> None:
    if any(len(v) > FREE_TEXT_LENGTH for v in emptied):
        raise Quarantine("free-text", f"column {name}")
    for kind, pattern in DETECTORS.items():
        hits = sum(bool(pattern.search(v)) for v in emptied)
        if hits > SUSPICIOUS * rows:
            raise Quarantine("identifier-in-column", f"column {name}: {hits} values look like a {kind}")
