"""NIfTI: a new header from the numbers of the old one, no extensions, no names, no face. Voxels are copied byte for byte where they stay."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from site_agent.deid.faces import Verdict, find_face
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import needles_of, output_name, patient_of
from site_agent.deid.pixels import RED
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe

#: header fields that hold text (NIfTI-1 and -2, and the ANALYZE fields they inherit)
TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "data_type", "db_name", "unused_str")
UNUSED_FIELDS = ("extents", "session_error", "regular", "glmax", "glmin")
LARGEST = 4 << 30  # bytes, unpacked
CIFTI = range(3000, 3100)


def looks_like_nifti(head: bytes) -> bool:
    """By magic, in either byte order, of an unpacked head of 540 bytes."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def unpack(data: bytes, limit: int = LARGEST) -> bytes:
    """Inflate a gzip member up to a limit. Raises ``too-large`` or ``damaged``."""
    if data[:2] != b"\x1f\x8b":
        return data
    inflater = zlib.decompressobj(31)
    try:
        out = inflater.decompress(data, limit)
    except zlib.error:
        raise Quarantine("damaged", "gzip") from None
    if inflater.unconsumed_tail:
        raise Quarantine("too-large", "unpacked")
    if not inflater.eof:
        raise Quarantine("damaged", "gzip ends early")
    return out


def clean_nifti(data: bytes, source: str, recipe: Recipe, key: SiteKey) -> Cleaned:
    """De-identify one volume.

    Args:
        data: the file's bytes, gzipped or not.
        source: path inside the source, for the pseudonymous name and the BIDS subject.

    Raises:
        Quarantine: with its reason.
    """
    packed, raw = data[:2] == b"\x1f\x8b", unpack(data)
    try:
        kind = nib.Nifti2Image if raw[4:8] in (b"n+2\0", b"ni2\0") else nib.Nifti1Image
        image = kind.from_bytes(raw)
        # an image's own header forgets its offset and its scale: the stored one is what counts
        header: Any = kind.header_class(raw[: kind.header_class.sizeof_hdr])
        intent = int(header["intent_code"])
    except Exception as error:  # nibabel's parsers raise many kinds
        raise Quarantine("damaged", type(error).__name__) from None
    if b"ni1" in raw[344:348] or intent in CIFTI:
        raise Quarantine("nifti-unusual")
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    offset = max(int(header["vox_offset"]), 352)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not shape or dtype.names or dtype.kind not in "iufc":
        raise Quarantine("nifti-unusual", "colour or empty voxels")
    if size > LARGEST or size > len(raw) - offset:
        raise Quarantine("damaged", f"{max(0, len(raw) - offset)} of {size} bytes of voxels")
    voxels = np.frombuffer(raw, dtype, count=size // dtype.itemsize, offset=offset).reshape(shape, order="F")

    actions: Counter[str] = Counter()
    needles = needles_of(source)
    new = header.copy()
    for name in TEXT_FIELDS + UNUSED_FIELDS:
        if name in new.keys():  # noqa: SIM118 - a structured header, not a dict
            old = new[name].item()
            if isinstance(old, bytes) and old.strip(b"\0 "):
                needles.add_bytes(old)
                actions[f"{name} emptied"] += 1
            new[name] = b"" if isinstance(old, bytes) else 0
    for extension in image.header.extensions:
        needles.add_bytes(bytes(str(extension.get_content()), "utf-8", "replace"))
        actions["extensions removed"] += 1
    verdict: Verdict | None = None
    pictures: list[Any] = []
    if "clean_recognizable_visual_features" in recipe.options:
        verdict, voxels, pictures = _without_face(voxels, image.affine, header.get_slope_inter(), dtype)
        actions[verdict.kind] += 1
    new["vox_offset"] = 544 if kind is nib.Nifti2Image else 352
    out = new.binaryblock + b"\0\0\0\0" + voxels.tobytes(order="F")
    return Cleaned(
        data=gzip.compress(out, 6, mtime=0) if packed else out,
        suffix=".nii.gz" if packed else ".nii",
        name=output_name(source, key),
        kind="nifti",
        patient=patient_of(source, key),
        modality="CT" if verdict and float(voxels.min()) <= -900 else "",
        shape=tuple(int(n) for n in shape),
        actions=actions,
        kept=Counter({str(k): 1 for k in new.keys() if k not in TEXT_FIELDS + UNUSED_FIELDS}),  # noqa: SIM118
        changed_pixels=bool(verdict and verdict.removed > 0),
        needles=needles,
        pictures=pictures,
        notes=_notes(verdict),
    )


def _without_face(
    voxels: NDArray[Any], affine: NDArray[Any], scale: tuple[float | None, float | None], dtype: np.dtype[Any]
) -> tuple[Verdict, NDArray[Any], list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]]:
    slope, inter = scale
    shown = np.abs(voxels) if dtype.kind == "c" else voxels
    while shown.ndim > 4:
        shown = shown[..., 0]
    volume = shown.astype(np.float32)
    if volume.ndim == 4:
        volume = volume.mean(axis=3)
    if volume.ndim < 3 or min(volume.shape) < 3:
        return Verdict("not a head", None, 0.0), voxels, []
    volume = np.nan_to_num(volume * np.float32(slope or 1) + np.float32(inter or 0))
    verdict = find_face(volume, affine)
    if verdict.kind == "not a head" or verdict.keep is None:
        return verdict, voxels, []
    out = voxels.copy(order="F")
    out[~verdict.keep] = _background(voxels, dtype)
    after = np.where(verdict.keep, volume, volume.min())
    before = _montage(after, affine, covered=~verdict.keep)
    caption = f"{verdict.kind}: fit {verdict.fit:.2f}, {verdict.removed:.1%} of the head removed"
    return verdict, out, [(caption, before, _montage(after, affine, front=True))]


def _background(voxels: NDArray[Any], dtype: np.dtype[Any]) -> Any:
    """Zero where the volume has it, else its smallest value."""
    return dtype.type(0) if dtype.kind in "uc" or float(voxels.min()) >= 0 else voxels.min()


def _montage(
    volume: NDArray[Any],
    affine: NDArray[Any],
    *,
    covered: NDArray[np.bool_] | None = None,
    front: bool = False,
    size: int = 240,
) -> NDArray[np.uint8]:
    """Sections for the report, RGB: the middle sagittal one and, with ``front``, the surface seen from the front, where a face would show.

    ``covered`` is painted flat red, air included: not even the profile of what was removed is shown.
    """
    values, zooms = _canonical(volume, affine)
    low, high = np.percentile(values, [2, 99])
    values = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    at = values.shape[0] // 2
    tiles = [(values[at], None if covered is None else _canonical(covered, affine)[0][at] > 0.5, zooms[1])]
    if front:
        tiles.append((_surface(values), None, zooms[0]))
    return np.hstack([_tile(grey, red, wide, zooms[2], size) for grey, red, wide in tiles])


def _canonical(volume: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, ...]]:
    """The volume with its axes to the right, front and top, and its voxel size in millimetres."""
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.astype(np.float32), affine))
    return np.asarray(image.dataobj), tuple(float(z) for z in image.header.get_zooms()[:3])


def _tile(
    grey: NDArray[Any], red: NDArray[np.bool_] | None, wide_mm: float, tall_mm: float, size: int
) -> NDArray[np.uint8]:
    """One section, top up, in a black square of ``size`` pixels."""
    import cv2

    picture = np.repeat((grey.T * 255).astype(np.uint8)[::-1, :, None], 3, axis=2)
    if red is not None:
        picture[red.T[::-1]] = RED
    scale = size / max(grey.shape[0] * wide_mm, grey.shape[1] * tall_mm)
    wide, tall = max(1, round(grey.shape[0] * wide_mm * scale)), max(1, round(grey.shape[1] * tall_mm * scale))
    canvas = np.zeros((size, size, 3), np.uint8)
    top, left = (size - tall) // 2, (size - wide) // 2
    canvas[top : top + tall, left : left + wide] = cv2.resize(np.ascontiguousarray(picture), (wide, tall))
    return canvas


def _surface(values: NDArray[Any]) -> NDArray[Any]:
    """Depth of the first bright voxel from the front (anterior is the high end of axis 1), shaded by its slope."""
    solid = values > 0.15
    depth = np.argmax(solid[:, ::-1, :], axis=1).astype(np.float32)
    hit = solid.any(axis=1)
    depth[~hit] = values.shape[1]
    dx, dz = np.gradient(depth)
    shade = 1 / np.sqrt(1 + (dx**2 + dz**2) / 4)
    return np.where(hit, 0.25 + 0.75 * shade, 0.0)


def _notes(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"face": "not examined: the recipe switches it off"}
    fit = None if verdict.fit is None else round(verdict.fit, 3)
    return {
        "face": verdict.kind,
        "fit": fit,
        "removed": round(verdict.removed, 4),
        "seconds": round(verdict.seconds, 2),
    }
