"""Images of the vault: only under a valid signed report, by the catalogue's pseudonyms, labelled by a table or by the folders they came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from medsynx.errors import MedsynxError
from medsynx.study import Study
from medsynx.tables import read_table
from site_agent.deid.keys import SiteKey
from site_agent.image_files import Source, prepare_files
from site_agent.image_readers import KINDS
from site_agent.images import NO_LABEL, STRANGE_LABEL, label_codes
from site_agent.ingest import LocalTable
from site_agent.policy import Dataset, Labels
from site_agent.vault import Vault

NO_SCANS = ("SEG", "RTDOSE")  #: modalities whose pixels are drawn or computed, left out unless the study names them
DISAGREE = "\0several"  #: no cell of a table: a patient whose rows name several classes


def prepare_vault_images(
    vault: Vault, declared: Dataset, study: Study, key: bytes, *, strict: bool = False
) -> LocalTable:
    """The images of a data set of the vault. Files that cannot be used are left out and counted by reason.

    Args:
        key: the site's secret.
        strict: see :func:`site_agent.image_files.prepare_files`.

    Raises:
        MedsynxError: ``dataset-unknown``; ``report-invalid`` when a file or a report is not as it was signed; ``column-missing`` for labels that
            are nowhere; those of :func:`site_agent.image_files.prepare_files`.
    """
    assert declared.vault is not None
    site_key, left_out = SiteKey(key), Counter[str]()
    vault.verified(declared.vault, site_key)
    labels = labels_of(vault, declared.labels, declared.vault, site_key, study) if declared.labels else None
    sources = list(_sources(vault, declared, labels, study, left_out))
    return prepare_files(sources, study, key, left_out, strict=strict)


def _sources(
    vault: Vault, declared: Dataset, labels: dict[str, str] | None, study: Study, left_out: Counter[str]
) -> Iterator[Source]:
    """The catalogue's images that may be used, each patient's copy of a file once; the others are counted."""
    spec, seen = study.image, set[tuple[str, str]]()
    assert spec is not None and declared.vault is not None
    name = declared.vault
    rows = [r for r in vault.catalogue.files(name, verdict="clean") if r["kind"] in KINDS]
    notes = [json.loads(r["notes"]) for r in rows]
    spelled = [
        labels.get(r["patient"], "") if labels is not None else n.get("label", "")
        for r, n in zip(rows, notes, strict=True)
    ]
    if rows and labels is None and not any(spelled):
        raise MedsynxError(
            "column-missing",
            f"no image of data set {name} has a label",
            hint="Name a table's column in site.yaml (`labels: {column: ...}`), or list folders under `labels` in the recipe and ingest again.",
        )
    codes = label_codes(np.array(spelled, str), spec, ("", *study.missing_values))
    for row, note, label, code in zip(rows, notes, spelled, codes.tolist(), strict=True):
        if (row["patient"], row["output"]) in seen:
            continue
        seen.add((row["patient"], row["output"]))
        wanted = row["modality"] in spec.modalities if spec.modalities else row["modality"] not in NO_SCANS
        if row["kind"] == "dicom" and not wanted:
            left_out["another modality"] += 1
        elif label == DISAGREE:
            left_out["patient with several labels"] += 1
        elif code < 0:
            left_out[NO_LABEL if code == -2 else STRANGE_LABEL] += 1
        elif note.get("unnamed") and (study.privacy.max_records_per_patient > 1 or not declared.one_file_a_patient):
            left_out["does not say whose it is"] += 1  # else each would be protected as if it were a patient
        else:  # without a name it is known by its content, wherever it lies: moving a file moves no patient to the other part
            whose = row["sha256"] if note.get("unnamed") else row["patient"]
            yield Source(vault.root / row["output"], row["kind"], row["sha256"], whose, code)


def labels_of(vault: Vault, labels: Labels, beside: str, key: SiteKey, study: Study) -> dict[str, str]:
    """Pseudonym -> the one class that the table's rows of this patient name; :data:`DISAGREE` where they name several.

    Raises:
        MedsynxError: ``dataset-unknown``, ``report-invalid``, or ``column-missing`` when no table has the column and a patient column.
    """
    name = labels.vault or beside
    if name != beside:
        vault.verified(name, key)
    out: dict[str, str] = {}
    columns: set[str] = set()
    for row in vault.catalogue.files(name, verdict="clean"):
        patient = json.loads(row["notes"]).get("patient_column")
        if row["kind"] != "table" or patient is None:
            continue
        frame = read_table(vault.root / row["output"])
        columns.update(map(str, frame.columns))
        if labels.column not in frame.columns:
            continue
        for pseudonym, cell in zip(
            frame[patient].astype(str), frame[labels.column].astype(str).str.strip(), strict=True
        ):
            if cell not in study.missing_values and out.setdefault(pseudonym, cell) != cell:
                out[pseudonym] = DISAGREE
    if labels.column not in columns:
        raise MedsynxError(
            "column-missing",
            f"no table of data set {name} has patients and a column {labels.column}",
            hint="Ingest a table whose dictionary declares the column and a patient-id, or correct `labels` in site.yaml.",
        )
    return out
