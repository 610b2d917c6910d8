"""What one process does with one file: recognise it, clean it, write it aside, read it back. The parent alone files it."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsynx.errors import MedsynxError
from site_agent.deid import reader
from site_agent.deid.catalogue import Entry
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import label_of
from site_agent.deid.profile import Profile
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from site_agent.deid.sources import Source
from site_agent.deid.written import split


@dataclass(frozen=True)
class Settings:
    """What a worker is told once."""

    key: SiteKey  # reaches the process through a pipe
    recipe: Recipe
    aside: Path
    withdrawn: frozenset[str] = frozenset()


@dataclass
class Outcome:
    """One file's row, where its bytes lie aside, and what only the parent may keep in memory."""

    entry: Entry
    aside: Path | None = None
    name: str = ""
    patient_needles: frozenset[str] = field(default_factory=frozenset)


class Worker:
    """Cleans files one after the other."""

    def __init__(self, settings: Settings) -> None:
        self.key, self.recipe, self.aside = settings.key, settings.recipe, settings.aside
        self.profile = Profile(settings.recipe)
        self.withdrawn = settings.withdrawn

    def run(self, source: Source, source_mac: str) -> Outcome:
        """One file from bytes to a verdict. Only a full disk is raised: ``disk-full``."""
        entry = Entry(source_mac, "", "quarantined")
        try:
            data = source.read()
            entry.content = self.key.mac("content", hashlib.sha256(data).hexdigest()).hex()
            cleaned = self.clean(data, source)
            if cleaned.patient and cleaned.patient.pseudonym in self.withdrawn:
                raise Quarantine("withdrawn")
            if cleaned.patient:
                label = label_of(source.name, self.recipe.labels)
                cleaned.notes |= ({"label": label} if label else {}) | (
                    {} if cleaned.patient.named else {"unnamed": True}
                )
            return self._write(entry, cleaned)
        except Quarantine as refused:
            entry.reason, entry.detail = refused.reason, refused.detail
        except MemoryError:
            entry.reason = "too-large"
        except OSError as error:
            if error.errno in (ENOSPC, EDQUOT):
                raise MedsynxError("disk-full", "no space left for the cleaned files") from None
            entry.reason, entry.detail = "unreadable", type(error).__name__
        except MedsynxError as error:
            entry.reason, entry.detail = "table-undeclared", error.code
        except Exception as error:  # an error we did not foresee is a doubt, and a doubt is quarantined
            entry.reason, entry.detail = "unforeseen", type(error).__name__
        if entry.reason in ("unreadable", "crashed"):
            entry.verdict = "failed"
        return Outcome(entry)

    def clean(self, data: bytes, source: Source) -> Cleaned:
        """Recognise by content and clean. Raises Quarantine."""
        # each room is imported when a file needs it: a site without NIfTI never loads SimpleITK
        if not data:
            raise Quarantine("empty")
        head = data[:132]
        from site_agent.deid.dicom import clean_dicom, looks_like_dicom

        if head[128:132] == b"DICM":
            return clean_dicom(data, self.recipe, self.profile, self.key)
        from site_agent.deid.pictures import clean_picture, looks_like_picture

        if looks_like_picture(head):
            return clean_picture(data, source.name, self.recipe, self.key)
        from site_agent.deid.nifti import clean_nifti, looks_like_nifti, unpack

        begin = _unpacked_head(data) if head[:2] == b"\x1f\x8b" else data[:540]
        if looks_like_nifti(begin):
            return clean_nifti(data, source.name, self.recipe, self.key)
        if head[:2] == b"\x1f\x8b":
            unpack(data, 1 << 20)
            raise Quarantine("not-recognised", "gzip")
        from site_agent.deid.tabular import clean_table, looks_like_table

        text = _text(data)
        if text is not None and text.lstrip("\ufeff \t\r\n").startswith("{"):
            if not source.volume_beside:
                raise Quarantine("sidecar-unusual", "no volume of its name lies beside it")
            from site_agent.deid.sidecars import clean_sidecar

            return clean_sidecar(data, source.name, self.recipe, self.profile, self.key)
        if looks_like_table(data, text):
            return clean_table(data, source.name, self.recipe, self.key, self.withdrawn)
        if text is None and looks_like_dicom(data[:140]):
            return clean_dicom(data, self.recipe, self.profile, self.key)
        raise Quarantine("not-recognised")

    def _write(self, entry: Entry, cleaned: Cleaned) -> Outcome:
        """Write aside, sync, read back from the disk, search."""
        handle, name = tempfile.mkstemp(dir=self.aside, suffix=".part")
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(cleaned.data)
                f.flush()
                os.fsync(f.fileno())
            back = path.read_bytes()
            if back != cleaned.data:
                raise Quarantine("damaged", "the disk gave back other bytes")
            blob, payload = split(back, cleaned.kind)
            hit = reader.found(
                blob, cleaned.needles, kept_dates=cleaned.kept_dates, payload=payload, charsets=cleaned.charsets
            )
            if hit:
                raise Quarantine("left-over", hit)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        patient = cleaned.patient
        entry.verdict, entry.sha256, entry.size = "clean", hashlib.sha256(back).hexdigest(), len(back)
        entry.kind, entry.modality, entry.shape = cleaned.kind, cleaned.modality, cleaned.shape
        entry.patients, entry.changed = cleaned.patients, cleaned.changed_pixels
        entry.actions, entry.kept, entry.notes = cleaned.actions, cleaned.kept, cleaned.notes
        entry.pictures = [(caption, _png(before), _png(after)) for caption, before, after in cleaned.pictures]
        if patient:
            entry.patient, entry.marks = patient.pseudonym, dict(patient.marks)
            if cleaned.kind == "dicom":
                bare = patient.pseudonym == self.key.pseudonym("", patient.identifier)
                mark = self.key.mac("mark", "identifier", patient.identifier).hex()[:16]
                entry.marks["bare-id" if bare else "id"] = mark
            if self.recipe.keep_mapping:
                entry.sealed = seal(self.key, patient.identifier)
        else:
            entry.actions = Counter(entry.actions)
        return Outcome(entry, path, cleaned.name + cleaned.suffix, cleaned.needles.patient)


def seal(key: SiteKey, identifier: str) -> bytes:
    """An identifier under AES-256-GCM with a key of its own; nonce first."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(12)
    return nonce + AESGCM(key.subkey("mapping")).encrypt(nonce, identifier.encode(), None)


def unseal(key: SiteKey, sealed: bytes) -> str:
    """The identifier. Raises ``key-changed`` under any other key."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key.subkey("mapping")).decrypt(sealed[:12], sealed[12:], None).decode()
    except InvalidTag:
        raise MedsynxError("key-changed", "the mapping was sealed under another key") from None


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _text(data: bytes) -> str | None:
    """The file as text, or None."""
    if b"\0" in data[:4096]:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _unpacked_head(data: bytes) -> bytes:
    import zlib

    try:
        return zlib.decompressobj(31).decompress(data[: 1 << 16], 540)
    except zlib.error:
        return b""


_worker: Worker | None = None


def start(settings: Settings, parent: int) -> None:
    """Initialise a pool's process, which ends with the process that has the pool."""
    import warnings

    from medsynx.processes import die_with_parent

    global _worker
    die_with_parent(parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")  # pydicom quotes values in its warnings
    import logging

    logging.disable(logging.WARNING)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the native decoders write about files to the error stream
    _worker = Worker(settings)


def work(source: Source, source_mac: str) -> Outcome:
    """Run one file in a pool's process."""
    assert _worker is not None
    return _worker.run(source, source_mac)
