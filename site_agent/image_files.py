"""Image files that have a label and a patient -> a site's patients. One file is read at a time; one that cannot be read is one image less.

A patient's files are read in a secret order until the study's cap is reached, so the work is bounded by the study and not by the archive.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsynx.codec import EncodeReport
from medsynx.errors import MedsynxError
from medsynx.progress import track
from medsynx.study import Study
from site_agent.deid.keys import SiteKey
from site_agent.image_readers import LeftOutError, read
from site_agent.images import NO_LABEL, STRANGE_LABEL, check_room, label_codes, local_images, to_unit
from site_agent.ingest import LocalTable, draw_lots


@dataclass(frozen=True)
class Source:
    """A file, its kind (see :func:`site_agent.image_readers.read`), the digest of its content, whose it is, and the code of its label."""

    path: Path
    kind: str
    sha256: str
    patient: str
    code: int


def prepare_files(
    sources: list[Source], study: Study, key: bytes, left_out: Counter[str], *, strict: bool = False
) -> LocalTable:
    """Read, cap and split.

    Args:
        key: the site's secret.
        left_out: why other files are not among the sources; what cannot be read is added.
        strict: refuse strange and absent labels, and patients with more images than the study's cap.

    Raises:
        MedsynxError: ``table-empty`` when no image is left; ``level-unknown``, ``patient-duplicate``, ``images-unreadable``.
    """
    spec, cap, secret = study.image, study.privacy.max_records_per_patient, SiteKey(key)
    assert spec is not None
    if strict and left_out[NO_LABEL] + left_out[STRANGE_LABEL]:
        raise MedsynxError("level-unknown", _told(Counter({w: left_out[w] for w in (NO_LABEL, STRANGE_LABEL)})))
    images, found = list[NDArray[np.float32]](), list[tuple[Source, int]]()
    clipped, capped, held = 0, 0, Counter[str]()
    drawn_order = sorted(sources, key=lambda s: secret.mac("draw", s.patient, s.sha256))
    for source in track(drawn_order, "reading images", len(sources)):
        if held[source.patient] >= cap:
            capped += 1
            continue
        try:
            scaled = [to_unit(picture[None], spec) for picture in read(source.path, source.kind, spec)]
        except LeftOutError as error:
            left_out[error.reason] += 1
            continue
        check_room(len(images) + len(scaled), spec)
        held[source.patient] += len(scaled)
        images += [image[0] for image, _ in scaled]
        clipped += sum(outside for _, outside in scaled)
        found += [(source, number) for number in range(len(scaled))]
    if not found:
        raise MedsynxError("table-empty", f"no image for this study: {_told(left_out) or 'there are none'}")
    texts = [f"{s.sha256} {number} {s.code} {s.patient}" for s, number in found]
    drawn = draw_lots(texts, [s.patient for s, _ in found], key, cap, strict=strict)
    if capped and strict:
        raise MedsynxError("patient-duplicate", f"{capped} files are above the cap of {cap} images a patient")
    codes = np.array([found[i][0].code for i in drawn.kept], np.int64)
    rows = len(found) + capped + left_out.total()
    report = EncodeReport(rows=rows, clipped={"images": clipped} if clipped else {}, left_out=dict(left_out))
    table = local_images(np.stack([images[i] for i in drawn.kept]), codes, drawn, report)
    return replace(table, capped=capped + drawn.capped)


def prepare_folder(folder: Path, study: Study, key: bytes, *, strict: bool = False) -> LocalTable:
    """Pictures (PNG, JPEG, TIFF) in one folder a class; see :func:`prepare_files`.

    No picture says whose it is: equal files are one patient, others are patients of their own, and a study of several images a patient is refused.

    Raises:
        MedsynxError: ``column-missing``; those of :func:`prepare_files`.
    """
    spec = study.image
    assert spec is not None
    if study.privacy.max_records_per_patient > 1:
        raise MedsynxError(
            "column-missing",
            "the study counts several images a patient, and a folder of pictures does not say whose they are",
            hint="Give an NPZ file with `patients`, or ingest the files into the vault.",
        )
    files = [f for f in sorted(folder.glob("*/**/*")) if f.is_file()]
    labels = np.array([f.relative_to(folder).parts[0] for f in files], str)
    left_out: Counter[str] = Counter()
    return prepare_files(
        list(_pictures(files, label_codes(labels, spec, ()).tolist(), left_out)), study, key, left_out, strict=strict
    )


def _pictures(files: list[Path], codes: list[int], left_out: Counter[str]) -> Iterator[Source]:
    for file, code in zip(files, codes, strict=True):
        if code < 0:
            left_out[STRANGE_LABEL] += 1
            continue
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        yield Source(file, "picture", content, content, code)


def _told(counts: Counter[str]) -> str:
    return "; ".join(f"{n} files: {why}" for why, n in (+counts).most_common())
