"""Images of the vault -> a site's labelled patients: only under a valid signed report, a file at a time, and by its pseudonym.

A patient's files are read in a secret order until the study's cap is reached, so the work is bounded by the study and not by the archive.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsynx.codec import EncodeReport
from medsynx.errors import MedsynxError
from medsynx.progress import track
from medsynx.study import Study
from medsynx.tables import read_table
from site_agent.deid.keys import SiteKey
from site_agent.image_readers import KINDS, LeftOutError, read
from site_agent.images import check_room, label_codes, local_images, to_unit
from site_agent.ingest import LocalTable, draw_lots
from site_agent.policy import Dataset, Labels
from site_agent.vault import Vault

NO_LABEL, STRANGE = "no label", "label outside the study"
DISAGREE = "\0several"  #: no cell of a table: a patient whose rows name several classes


@dataclass(frozen=True)
class Source:
    """A file of the catalogue that may be trained on."""

    path: Path
    kind: str
    sha256: str
    patient: str
    code: int


def prepare_vault_images(
    vault: Vault, declared: Dataset, study: Study, key: bytes, *, strict: bool = False
) -> LocalTable:
    """Read, label, cap and split the images of a data set. Files that cannot be used are left out and counted by reason.

    Args:
        key: the site's secret.
        strict: refuse strange and absent labels, and patients with more images than the study's cap.

    Raises:
        MedsynxError: ``dataset-unknown``; ``report-invalid`` when a file or a report is not as it was signed; ``column-missing`` for labels that
            are nowhere; ``table-empty`` when no image is left; ``level-unknown``, ``patient-duplicate``, ``images-unreadable``.
    """
    spec, cap, site_key = study.image, study.privacy.max_records_per_patient, SiteKey(key)
    assert spec is not None and declared.vault is not None
    vault.verified(declared.vault, site_key)
    left_out: Counter[str] = Counter()
    labels = labels_of(vault, declared.labels, declared.vault, site_key, study) if declared.labels else None
    sources = list(_sources(vault, declared.vault, labels, study, left_out))
    if strict and left_out[NO_LABEL] + left_out[STRANGE]:
        raise MedsynxError("level-unknown", _told(Counter({w: left_out[w] for w in (NO_LABEL, STRANGE)})))
    sources.sort(key=lambda s: site_key.mac("draw", s.patient, s.sha256))
    images, found, clipped, capped = [], [], 0, 0
    held: Counter[str] = Counter()
    for source in track(sources, "reading images", len(sources)):
        if held[source.patient] >= cap:
            capped += 1
            continue
        try:
            read_now = [to_unit(picture[None], spec) for picture in read(source.path, source.kind, spec)]
        except LeftOutError as error:
            left_out[error.reason] += 1
            continue
        held[source.patient] += len(read_now)
        images += [unit[0] for unit, _ in read_now]
        clipped += sum(outside for _, outside in read_now)
        found += [(source, number) for number in range(len(read_now))]
        check_room(len(images), spec)
    if not found:
        raise MedsynxError("table-empty", f"data set {declared.vault} has no image for this study: {_told(left_out)}")
    texts = [f"{s.sha256} {number} {s.code} {s.patient}" for s, number in found]
    drawn = draw_lots(texts, [s.patient for s, _ in found], key, cap, strict=strict)
    codes = np.array([s.code for s, _ in found], np.int64)[drawn.kept]
    report = EncodeReport(
        rows=len(found) + capped + left_out.total(),
        clipped={"images": clipped} if clipped else {},
        left_out=dict(left_out),
    )
    table = local_images(np.stack([images[i] for i in drawn.kept]), codes, drawn, report)
    return LocalTable(table.parts, report, capped + drawn.capped)


def _sources(
    vault: Vault, name: str, labels: dict[str, str] | None, study: Study, left_out: Counter[str]
) -> Iterator[Source]:
    """The catalogue's images that may be used, each patient's copy of a file once; the others are counted."""
    spec, seen = study.image, set[tuple[str, str]]()
    assert spec is not None
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
        if spec.modalities and row["kind"] == "dicom" and row["modality"] not in spec.modalities:
            left_out["another modality"] += 1
        elif label == DISAGREE:
            left_out["patient with several labels"] += 1
        elif code < 0:
            left_out[NO_LABEL if code == -2 else STRANGE] += 1
        elif study.privacy.max_records_per_patient > 1 and note.get("unnamed"):
            left_out["does not say whose it is"] += 1  # else each would be protected as if it were a patient
        else:
            yield Source(vault.root / row["output"], row["kind"], row["sha256"], row["patient"], code)


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


def _told(counts: Counter[str]) -> str:
    return "; ".join(f"{n} files: {why}" for why, n in (+counts).most_common()) or "it holds no images"
