"""Reading back what was written, for the second reader: headers apart from samples, compression undone."""

from __future__ import annotations

import gzip
import io
import zlib

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from site_agent.deid.quarantine import Quarantine


def split(data: bytes, kind: str) -> tuple[bytes, bytes]:
    """A written file as (everything readable, samples)."""
    if kind == "dicom":
        return _dicom(data)
    if kind == "nifti":
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        header = 544 if raw[4:8] == b"n+2\0" or raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else 352
        return raw[:header], raw[header:]
    if kind == "picture":
        return b"", data
    return data, b""


def _dicom(data: bytes) -> tuple[bytes, bytes]:
    stream = io.BytesIO(data)
    ds = pydicom.dcmread(stream, stop_before_pixels=True)
    end = stream.tell()
    _promises(ds, data)
    if ds.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 144 + int.from_bytes(data[140:144], "little")
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])
        return data[:start] + inflated[: 1 << 20], inflated[1 << 20 :]
    return data[:end], data[end:]


def _promises(ds: pydicom.FileDataset, data: bytes) -> None:
    """What every written object must show, read from the bytes and not from memory. Raises ``left-over``."""
    safe = "113111" in {str(i.CodeValue) for i in ds.get("DeidentificationMethodCodeSequence", [])}
    for tag in ds.keys():  # noqa: SIM118 - a data set iterates over elements, which would parse them
        if tag.is_private and not safe:
            raise Quarantine("left-over", "a private attribute")
        if 0x5000 <= tag.group <= 0x501E or 0x6000 <= tag.group <= 0x601E:
            raise Quarantine("left-over", "a curve or an overlay")
    if ds.get("PatientIdentityRemoved") != "YES" or data[:128].strip(b"\0"):
        raise Quarantine("left-over", "the file is not marked, or its preamble is not empty")
    if ds.file_meta.MediaStorageSOPInstanceUID != ds.SOPInstanceUID:
        raise Quarantine("left-over", "file meta and data set name different objects")
