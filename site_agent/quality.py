"""What a site's own people should know of a data set before they approve a study on it. Stays at the site: counts here are exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsynx.study import BooleanColumn, LevelColumn, Study
from site_agent.ingest import LocalTable


def examine(table: LocalTable, study: Study) -> dict[str, Any]:
    """Counts of a data set read by a study's dictionary: the object of ``medsynx site check --json``."""
    report, patients = table.report, table.parts["all"]
    images = {}
    if study.image:
        by_class = np.bincount(patients.codes[:, 0], minlength=len(study.image.classes)).tolist()
        images = {"images": len(patients.codes), "classes": dict(zip(study.image.classes, by_class, strict=True))}
    return {
        "patients": patients.count,
        **images,
        "rows": report.rows,
        "duplicates": table.duplicates,
        "dropped_columns": report.dropped_columns,
        "left_out": report.left_out,
        "clipped": report.clipped,
        "other": report.other,
        "missing": report.missing,
        "capped": table.capped,
        "patients_by_class": _by_class(table, study),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    if "images" in found:
        out = [
            f"{found['images']:,} images of {found['patients']:,} patients; {found['capped']:,} above the cap a patient"
        ]
        out.append("  " + ", ".join(f"{name}: {n:,}" for name, n in found["classes"].items()))
    else:
        out = [f"{found['patients']} patients, {found['rows']} rows; {found['capped']} rows above the cap a patient"]
    if found["patients_by_class"]:
        out.append("patients by class: " + ", ".join(f"{k} {n}" for k, n in found["patients_by_class"].items()))
    if found["duplicates"]:
        out.append(f"{found['duplicates']} {'images' if 'images' in found else 'rows'} are equal to an earlier one")
    if found["dropped_columns"]:
        out.append(f"not in the dictionary, left out: {', '.join(found['dropped_columns'])}")
    out += [f"  {count} images left out: {why}" for why, count in found["left_out"].items() if count]
    for what, key in (
        ("out of bounds, clipped", "clipped"),
        ("no level of the dictionary", "other"),
        ("missing", "missing"),
    ):
        out += [f"  {column}: {count} {what}" for column, count in found[key].items() if count]
    return out


def _by_class(table: LocalTable, study: Study) -> dict[str, int]:
    """Patients with at least one record of each class of the target (of the images); empty without a target of named levels."""
    patients = table.parts["all"]
    if study.image:
        classes: tuple[str, ...] = study.image.classes
        codes = patients.codes[:, 0]
    else:
        name = study.by_role("target")
        column = study.data_columns[name] if name else None
        if not isinstance(column, LevelColumn | BooleanColumn):
            return {}
        classes, codes = tuple(column.levels), patients.codes[:, list(study.data_columns).index(str(name))]
    return {c: len(np.unique(patients.patient[codes == k])) for k, c in enumerate(classes)}
