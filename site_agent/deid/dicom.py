"""One DICOM object: open, judge, clean pixels, clean attributes, write anew. Every doubt ends in quarantine.

Order (each step depends on the one before): storage class -> names to deny -> pixels, whose rules read the source's headers -> attributes ->
identity and method -> new file meta and preamble -> bytes.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import Any

import pydicom
from pydicom import config, filereader
from pydicom.charset import python_encoding
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsynx import IMPLEMENTATION_UID, __version__
from site_agent.deid.attributes import Walk
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned, Patient
from site_agent.deid.pixels import PixelResult, clean_pixels
from site_agent.deid.profile import Profile, attribute_type, edition, known_sop_class
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.reader import WORDS, Needles
from site_agent.deid.recipe import OPTION_CODES, Recipe
from site_agent.deid.values import group_age, is_over_89, shift

config.settings.reading_validation_mode = config.IGNORE  # values are judged by Walk, which must see them as they are
config.settings.writing_validation_mode = config.IGNORE
config.convert_wrong_length_to_UN = True

STORAGE = "1.2.840.10008.5.1.4.1.1."
ENCAPSULATED = STORAGE + "104."
RAW = STORAGE + "66"
VIDEO = ("1.2.840.10008.1.2.4.10",)  # MPEG-2, MPEG-4, HEVC: 1.2.840.10008.1.2.4.100 to .108
IDENTIFIERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfPatientID")
NAME_PARTS = re.compile(r"[^\W\d_]{2,}")
MOST_INFLATED = 1 << 30


def looks_like_dicom(head: bytes) -> bool:
    """By content: the magic word, or a plausible first element for files without a preamble."""
    if head[128:132] == b"DICM":
        return True
    little = head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x08", b"\x00\x02") and head[2:3] == b"\x00"
    vr = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return len(head) > 12 and ((little and (vr or length < 256)) or (big and vr))


def clean_dicom(data: bytes, recipe: Recipe, profile: Profile, key: SiteKey) -> Cleaned:
    """De-identify one object.

    Args:
        data: the file's bytes.

    Raises:
        Quarantine: with its reason.
    """
    ds = _read(data)
    _judge(ds)
    sop_class = str(ds.SOPClassUID)
    patient = _patient(ds, key, recipe.default_issuer)
    denied, needles = _names(ds)
    charsets = _charsets(ds)
    birth, reference = str(ds.get("PatientBirthDate", "") or ""), str(ds.get("StudyDate", "") or "")
    # over 89 the dates move by another number of days: the interval to an earlier study, which has an exact age, would tell the age
    days = key.days(patient.pseudonym + " over 89" * _over_89(ds, birth))
    shape = _shape(ds)
    pixels = clean_pixels(ds, site_rules=recipe.regions, blank="clean_pixel_data" in recipe.options)

    walk = Walk(profile, recipe, key, sop_class=sop_class, days=days, denied=denied, identifiers=frozenset(needles.ids))
    trace = walk.clean(ds)
    _merge(trace.needles, needles)
    _identity(ds, patient, recipe, walk, birth, reference)
    _method(ds, recipe, pixels)
    modality = str(ds.get("Modality", "") or "")  # as cleaned: the report shows it
    out = _write(ds)
    return Cleaned(
        data=out,
        suffix=".dcm",
        name=str(ds.SOPInstanceUID).removeprefix("2.25."),
        kind="dicom",
        patient=patient,
        modality=modality,
        shape=shape,
        actions=trace.actions,
        kept=trace.kept,
        changed_pixels=pixels.changed,
        needles=trace.needles,
        kept_dates=frozenset(trace.dates),
        charsets=charsets,
        pictures=_pictures(pixels),
        notes=_notes(ds, pixels, modality),
    )


# -- reading and judging


def _read(data: bytes) -> FileDataset:
    force = data[128:132] != b"DICM"
    _check_deflated(data)
    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=force)
        _ = len(ds)
    except MemoryError:
        raise Quarantine("too-large") from None
    except Exception as error:  # a parser that stops has shown that the file is damaged
        raise Quarantine("damaged", type(error).__name__) from None
    _check_lengths(ds, len(data))
    meta = getattr(ds, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = ds.original_encoding
        if not little:
            raise Quarantine("transfer-syntax", "no transfer syntax is declared")
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds.file_meta = meta
    return ds


def _check_deflated(data: bytes) -> None:
    """Refuse a deflated object that unpacks to more than memory should hold: the parser would not stop."""
    stream = io.BytesIO(data)
    try:
        filereader.read_preamble(stream, force=True)
        meta = filereader._read_file_meta_info(stream)  # leaves the stream where the parser begins to inflate
    except Exception:  # the parser says what is wrong
        return
    if str(meta.get("TransferSyntaxUID", "")) != DeflatedExplicitVRLittleEndian:
        return
    inflate, left, size = zlib.decompressobj(-zlib.MAX_WBITS), data[stream.tell() :], 0
    try:
        while left and size <= MOST_INFLATED:
            size += len(inflate.decompress(left, 1 << 22))
            left = inflate.unconsumed_tail
    except zlib.error:
        raise Quarantine("damaged", "deflated") from None
    if size > MOST_INFLATED:
        raise Quarantine("too-large", "deflated")


def _check_lengths(ds: Dataset, size: int) -> None:
    """pydicom takes what is there when a value claims more: a value shorter than its length means the file ends early."""
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)
        length = getattr(raw, "length", None)
        value = getattr(raw, "value", None)
        if isinstance(length, int) and length != 0xFFFFFFFF and isinstance(value, bytes) and len(value) < length:
            raise Quarantine("too-large" if length > 64 * size else "damaged", "a value ends before its length")


def _judge(ds: FileDataset) -> None:
    syntax = ds.file_meta.TransferSyntaxUID
    if (
        "DirectoryRecordSequence" in ds
        or str(ds.file_meta.get("MediaStorageSOPClassUID", "")) == "1.2.840.10008.1.3.10"
    ):
        raise Quarantine("dicomdir")
    sop_class = str(ds.get("SOPClassUID", "") or "")
    if not sop_class:
        raise Quarantine("damaged", "no SOPClassUID")
    if sop_class.startswith(ENCAPSULATED) or "EncapsulatedDocument" in ds:
        raise Quarantine("encapsulated-document")
    if sop_class.startswith(RAW) and sop_class in (RAW, RAW + ".7"):
        raise Quarantine("raw-data")
    if not known_sop_class(sop_class):
        raise Quarantine("sop-class", sop_class if sop_class.startswith("1.2.840.10008.") else "private")
    if not ds.get("SOPInstanceUID"):
        raise Quarantine("damaged", "no SOPInstanceUID")
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise Quarantine("transfer-syntax", "private or unknown")
    if syntax.startswith(VIDEO):
        raise Quarantine("transfer-syntax", "video")


def _shape(ds: Dataset) -> tuple[int, ...]:
    try:
        return tuple(int(ds[k].value) for k in ("NumberOfFrames", "Rows", "Columns") if ds.get(k))
    except (TypeError, ValueError):
        raise Quarantine("damaged", "the image's size is not a number") from None


def _patient(ds: Dataset, key: SiteKey, default_issuer: str) -> Patient:
    identifier = str(ds.get("PatientID", "") or "").strip("\0 ")
    if not identifier:
        raise Quarantine("patient-id-missing")
    issuer = str(ds.get("IssuerOfPatientID", "") or "").strip("\0 ") or default_issuer
    words = sorted({w.lower() for w in WORDS.findall(str(ds.get("PatientName", "") or ""))})
    birth = str(ds.get("PatientBirthDate", "") or "").strip()
    marks = {}
    pseudonym = key.pseudonym(issuer, identifier)
    if birth:
        marks["birth"] = key.mac("mark", pseudonym, birth).hex()[:16]
    if words:
        marks["name"] = ",".join(key.mac("mark", pseudonym, w).hex()[:12] for w in words)
    return Patient(pseudonym, marks, identifier)


def _names(ds: Dataset) -> tuple[frozenset[str], Needles]:
    """Words of every person's name, at any depth: denied in text though the vocabulary may have them, and searched for afterwards."""
    needles = Needles()
    denied: set[str] = set()
    for e in _elements(ds):
        if e.VR == "PN" and e.value:
            text = str(e.value) if not isinstance(e.value, list) else " ".join(map(str, e.value))
            denied.update(w.lower() for w in NAME_PARTS.findall(text))
            if e.keyword in ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"):
                needles.add_name(text)
        elif e.keyword in IDENTIFIERS and e.value:
            needles.add_id(str(e.value))
    return frozenset(denied), needles


def _elements(ds: Dataset) -> Any:
    for tag in list(ds.keys()):
        try:
            e = ds[tag]
            nested = list(e.value or []) if e.VR == "SQ" else []
        except Exception:  # judged and removed by the walk
            continue
        yield e
        for item in nested:
            yield from _elements(item)


def _charsets(ds: Dataset) -> tuple[str, ...]:
    value = ds.get("SpecificCharacterSet") or ()
    names = [value] if isinstance(value, str) else list(value)
    return tuple({python_encoding[n] for n in names if n in python_encoding})


def _merge(into: Needles, other: Needles) -> None:
    into.names |= other.names
    into.ids |= other.ids


# -- what every written file carries


def _identity(ds: Dataset, patient: Patient, recipe: Recipe, walk: Walk, birth: str, reference: str) -> None:
    ds.PatientID, ds.PatientName = patient.pseudonym, patient.pseudonym
    ds.PatientBirthDate = None
    if birth:
        walk.trace.needles.add_date(birth)
    if "retain_patient_characteristics" in recipe.options:
        age = _age(birth, reference) or str(ds.get("PatientAge", "") or "")
        if age:
            ds.PatientAge = group_age(age)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not ds.get(keyword) and attribute_type(str(ds.SOPClassUID), (), keyword) == "1":
            setattr(ds, keyword, walk.key.uid(f"missing {keyword} {ds.SOPInstanceUID}"))


def _over_89(ds: Dataset, birth: str) -> bool:
    """Whether the patient is over 89 on any day of this object."""
    days = [str(ds.get(k, "") or "") for k in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")]
    ages = [_age(birth, day[:8]) for day in days] + [str(ds.get("PatientAge", "") or "")]
    return any(a and is_over_89(a) for a in ages)


def _age(birth: str, reference: str) -> str | None:
    """Completed years at the study, from dates that never leave."""
    if not (shift(birth, 0) and shift(reference, 0)):
        return None
    years = int(reference[:4]) - int(birth[:4]) - (reference[4:8] < birth[4:8])
    return f"{years:03d}Y" if 0 < years < 150 else None


def _method(ds: Dataset, recipe: Recipe, pixels: PixelResult) -> None:
    """PatientIdentityRemoved and how; an option is listed only when it was applied to this object."""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = [f"MedSynX {__version__}", f"PS3.15 {edition()[:5]}", f"recipe {recipe.digest[:16]}"]
    dates = "retain_longitudinal_modified_dates" in recipe.options
    ds.LongitudinalTemporalInformationModified = "MODIFIED" if dates else "REMOVED"
    applied = recipe.options - {"clean_recognizable_visual_features"}  # faces are removed from NIfTI only
    if not pixels.examined:
        applied -= {"clean_pixel_data"}
    if "ContentSequence" not in ds:
        applied -= {"clean_structured_content"}
    codes = [("113100", "Basic Application Confidentiality Profile")]
    codes += sorted(OPTION_CODES[name] for name in applied)
    items = []
    for value, meaning in codes:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    ds.DeidentificationMethodCodeSequence = Sequence(items)
    if "PixelData" in ds and pixels.examined:
        ds.BurnedInAnnotation = "NO"


def _write(ds: FileDataset) -> bytes:
    """Bytes with a zero preamble and a file meta group of our own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION_UID), f"MEDSYNX_{__version__}"[:16]
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    buffer = io.BytesIO()
    try:
        pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    except Exception as error:  # what cannot be written back is not passed on
        raise Quarantine("damaged", f"cannot be written: {type(error).__name__}") from None
    return buffer.getvalue()


def _pictures(pixels: PixelResult) -> list[Any]:
    if pixels.before is None or pixels.after is None:
        return []
    return [(f"{len(pixels.boxes)} regions blanked", pixels.before, pixels.after)]


def _notes(ds: Dataset, pixels: PixelResult, modality: str) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if pixels.boxes:
        notes["boxes"] = len(pixels.boxes)
    if pixels.rule:
        notes["rule"] = pixels.rule
    if modality in ("CT", "MR", "PT") and "PixelData" in ds:
        notes["face_possible"] = True
    return notes
