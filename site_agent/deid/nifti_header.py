"""NIfTI headers: what an old one says about its voxels, and a new one that says only that.

Most fields of the format are numbers that nothing reads (dimensions past the last, intent parameters, slice times, display ranges), and any of
them can hold text. So a header is never edited: it is read, and written afresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import intent_codes
from numpy.typing import NDArray

from site_agent.deid.quarantine import Quarantine

LARGEST = 2 << 30  # bytes of one volume, unpacked
CIFTI = range(3000, 3100)
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
FARTHEST = 1e6  # no offset, zoom or repetition time is larger; four letters read as a number mostly are
#: header fields that hold text (NIfTI-1 and -2, and the ANALYZE fields they inherit)
TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "data_type", "db_name", "unused_str")
KEPT = ("dim", "datatype", "pixdim", "xyzt_units", "qform", "sform", "scl_slope", "scl_inter", "intent_code")


def looks_like_nifti(head: bytes) -> bool:
    """By magic, in either byte order, of an unpacked head of 540 bytes."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


@dataclass(frozen=True)
class Layout:
    """Where the voxels lie in the unpacked file and what they are.

    ``affine`` (4x4) is in the file's own unit; ``millimetres`` turns it into mm. ``placed`` is False where the file does not say how the
    volume lies in space, or contradicts itself about its voxel size.
    """

    old: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    size: int
    affine: NDArray[np.float64]
    millimetres: float
    placed: bool
    scale: tuple[float, float] | None

    @property
    def end(self) -> int:
        """Bytes of the unpacked file up to its last voxel."""
        return self.offset + self.size


def read_layout(head: bytes) -> Layout:
    """Read the first 540 bytes. Raises ``damaged``, ``nifti-unusual`` or ``too-large``."""
    kind = nib.Nifti2Header if head[4:8] in (b"n+2\0", b"ni2\0") else nib.Nifti1Header
    if b"ni1" in head[344:348] or b"ni2" in head[4:8]:
        raise Quarantine("nifti-unusual", "voxels in a second file")
    try:
        old: Any = kind(head[: kind.sizeof_hdr])
        dtype, shape = old.get_data_dtype(), tuple(int(n) for n in old.get_data_shape())
        offset = max(int(old["vox_offset"]), kind.sizeof_hdr + 4)
        slope, inter = old.get_slope_inter()
        affine = np.asarray(old.get_best_affine(), np.float64)
        unit = _units(old)[0]
        codes = (int(old["qform_code"]), int(old["sform_code"]))
    except Exception as error:  # nibabel's parsers raise many kinds
        raise Quarantine("damaged", type(error).__name__) from None
    if int(old["intent_code"]) in CIFTI:
        raise Quarantine("nifti-unusual")
    if not shape or min(shape) < 1 or dtype.names or dtype.kind not in "iufc":
        raise Quarantine("nifti-unusual", "colour or empty voxels")
    size = dtype.itemsize
    for n in shape:  # Python's integers: a product of seven dimensions overflows any other
        size *= n
    if offset + size > LARGEST:
        raise Quarantine("too-large", "voxels")
    numbers = np.concatenate([affine.ravel(), np.asarray(old["pixdim"][1 : len(shape) + 1], float)])
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > FARTHEST or not set(codes) <= set(range(6)):
        raise Quarantine("damaged", "the affine is not one")
    sides, zooms = np.linalg.norm(affine[:3, :3], axis=0), np.abs(np.asarray(old["pixdim"][1:4], float))
    agree = all(abs(s - z) <= 0.1 * z for s, z in list(zip(sides, zooms, strict=True))[: len(shape)])
    scale = None if slope is None else (float(slope), float(inter or 0))
    return Layout(old, shape, dtype, offset, size, affine, MILLIMETRES[unit], any(codes) and agree, scale)


def fresh_header(layout: Layout) -> bytes:
    """A header and its empty extension flag: shape, type, place in space, zooms, units, scale and the kind of map; every other byte is a default."""
    old = layout.old
    new: Any = type(old)(endianness=old.endianness)
    new.set_data_dtype(layout.dtype)
    new.set_data_shape(layout.shape)
    new.set_zooms([abs(float(z)) for z in old["pixdim"][1 : len(layout.shape) + 1]])
    new["pixdim"][0] = -1 if old["pixdim"][0] == -1 else 1
    new.set_xyzt_units(*_units(old))
    for name, fields in (
        ("qform_code", ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")),
        ("sform_code", ("srow_x", "srow_y", "srow_z")),
    ):
        if old[name] > 0:  # without its code a form is not read, so nothing vouches for its numbers
            for field in (name, *fields):
                new[field] = old[field]
    if layout.scale:
        new["scl_slope"], new["scl_inter"] = old["scl_slope"], old["scl_inter"]
    if int(old["intent_code"]) in intent_codes.code:
        new["intent_code"] = old["intent_code"]
    new["vox_offset"] = new.sizeof_hdr + 4
    return bytes(new.binaryblock) + b"\0\0\0\0"


def _units(header: Any) -> tuple[str, str]:
    """The units of space and time; ``unknown`` for a code that is none."""
    try:
        space, time = header.get_xyzt_units()
    except KeyError:
        return "unknown", "unknown"
    return (space if space in MILLIMETRES else "unknown"), time
