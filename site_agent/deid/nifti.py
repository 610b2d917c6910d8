"""NIfTI: a new header, no extensions, no names, no face. Voxels are edited where they lie, so one copy of a volume is held."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from site_agent.deid.faces import FEWEST_SAMPLES, Verdict, find_face
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import needles_of, output_name, patient_of
from site_agent.deid.nifti_header import KEPT, TEXT_FIELDS, Layout, fresh_header, looks_like_nifti, read_layout
from site_agent.deid.pixels import RED
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe

__all__ = ["clean_nifti", "looks_like_nifti", "unpack"]

SLACK = 1 << 16  # bytes after the last voxel that are read, and dropped
CHUNK = 1 << 20
DENSEST = 1040  # deflate cannot do better than 1032 to 1
LONGEST_SIDE = 512  # samples of the copy in which a face is looked for


def unpack(data: bytes, limit: int) -> bytearray:
    """Inflate a gzip member up to a limit. Raises ``too-large`` or ``damaged``."""
    inflater, out, at = zlib.decompressobj(31), bytearray(), 0
    try:
        while not inflater.eof and len(out) <= limit:
            piece = inflater.unconsumed_tail or data[at : at + CHUNK]
            at += 0 if inflater.unconsumed_tail else CHUNK
            if not piece:
                raise Quarantine("damaged", "gzip ends early")
            out += inflater.decompress(piece, CHUNK)
    except zlib.error:
        raise Quarantine("damaged", "gzip") from None
    if len(out) > limit:
        raise Quarantine("too-large", "unpacked")
    return out


def clean_nifti(data: bytes, source: str, recipe: Recipe, key: SiteKey) -> Cleaned:
    """De-identify one volume.

    Args:
        data: the file's bytes, gzipped or not.
        source: path inside the source, for the pseudonymous name and the BIDS subject.

    Raises:
        Quarantine: with its reason.
    """
    packed = data[:2] == b"\x1f\x8b"
    layout = read_layout(_head(data) if packed else data[:540])
    if layout.end > len(data) * (DENSEST if packed else 1):
        raise Quarantine("damaged", f"{len(data)} bytes cannot hold {layout.end}")
    raw = unpack(data, layout.end + SLACK) if packed else bytearray(memoryview(data)[: layout.end])
    if layout.end > len(raw):
        raise Quarantine("damaged", f"{max(0, len(raw) - layout.offset)} of {layout.size} bytes of voxels")
    actions: Counter[str] = Counter()
    needles = needles_of(source)
    for name in TEXT_FIELDS:
        old = layout.old[name].item() if name in layout.old.keys() else b""  # noqa: SIM118 - a structured header, not a dict
        if old.strip(b"\0 "):
            needles.add_bytes(old)
            actions[f"{name} emptied"] += 1
    between = bytes(raw[layout.old.sizeof_hdr : layout.offset])
    if between.strip(b"\0"):
        needles.add_bytes(between)
        actions["extensions removed"] += 1
    voxels = np.frombuffer(raw, layout.dtype, count=layout.size // layout.dtype.itemsize, offset=layout.offset)
    voxels = voxels.reshape(layout.shape, order="F")
    verdict: Verdict | None = None
    pictures: list[Any] = []
    ct = False
    if "clean_recognizable_visual_features" in recipe.options:
        verdict, ct, pictures = _without_face(voxels, layout)
        actions[verdict.kind] += 1
    return Cleaned(
        data=_written(fresh_header(layout), memoryview(raw)[layout.offset : layout.end], packed),
        suffix=".nii.gz" if packed else ".nii",
        name=output_name(source, key),
        kind="nifti",
        patient=patient_of(source, key),
        modality="CT" if ct else "",
        shape=layout.shape,
        actions=actions,
        kept=Counter(KEPT),
        changed_pixels=bool(verdict and verdict.removed > 0),
        needles=needles,
        pictures=pictures,
        notes=_notes(verdict),
    )


def _head(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data[: 1 << 16], 540)
    except zlib.error:
        raise Quarantine("damaged", "gzip") from None


def _written(header: bytes, voxels: memoryview, packed: bool) -> bytes:
    """The file. The gzip header of zlib has no name and no time."""
    if not packed:
        return b"".join((header, voxels))
    deflater = zlib.compressobj(6, zlib.DEFLATED, 31)
    return b"".join((deflater.compress(header), deflater.compress(voxels), deflater.flush()))


def _without_face(
    voxels: NDArray[Any], layout: Layout
) -> tuple[Verdict, bool, list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]]:
    """Empty the face of a volume in place. Returns the verdict, whether it looks like CT, and pictures for the report."""
    if min((*layout.shape, 1, 1)[:3]) < 3 and voxels.size >= FEWEST_SAMPLES**3:
        raise Quarantine("head-uncertain", "single sections, or space along another dimension")
    steps = _steps(layout)
    volume = _seen(voxels, steps)
    slope, inter = layout.scale or (1.0, 0.0)
    volume = np.nan_to_num(volume * np.float32(slope) + np.float32(inter), posinf=0, neginf=0)
    affine = np.diag([layout.millimetres] * 3 + [1.0]) @ layout.affine @ np.diag([*steps, 1.0])
    verdict = find_face(volume, affine, placed=layout.placed)
    ct = float(volume.min()) <= -900
    if verdict.keep is None:
        return verdict, ct, []
    gone = ~verdict.keep
    if verdict.removed > 0:
        grid = [np.arange(n) // step for n, step in zip(layout.shape[:3], steps, strict=True)]
        voxels[gone[np.ix_(*grid)]] = _background(voxels)
    after = np.where(gone, volume.min(), volume)
    caption = f"{verdict.kind}: fit {verdict.fit:.2f}, {verdict.removed:.1%} of the head removed"
    return verdict, ct, [(caption, _montage(after, affine, covered=gone), _montage(after, affine, front=True))]


def _steps(layout: Layout) -> tuple[int, int, int]:
    """Every how many voxels are looked at along each axis: about a millimetre is enough to find a face."""
    sides = np.linalg.norm(layout.affine[:3, :3], axis=0) * layout.millimetres
    shape = (*layout.shape, 1, 1)[:3]
    wanted = [max(1.0 / s if s > 0.01 else 1.0, n / LONGEST_SIDE) for s, n in zip(sides, shape, strict=True)]
    i, j, k = (min(max(1, int(np.ceil(w - 0.3))), n) for w, n in zip(wanted, shape, strict=True))
    return i, j, k


def _seen(voxels: NDArray[Any], steps: tuple[int, int, int]) -> NDArray[np.float32]:
    """The mean over every dimension past the third, of every so manieth voxel; magnitudes where they are complex."""
    shape = (*voxels.shape, 1, 1)[: max(3, voxels.ndim)]
    frames = voxels.reshape(*shape[:3], -1, order="F")[:: steps[0], :: steps[1], :: steps[2]]
    total = np.zeros(frames.shape[:3], np.float32)
    for i in range(frames.shape[3]):
        frame = frames[..., i]
        total += np.nan_to_num((np.abs(frame) if frame.dtype.kind == "c" else frame).astype(np.float32))
    return total / np.float32(frames.shape[3])


def _background(voxels: NDArray[Any]) -> Any:
    """Zero where the volume has it, else its smallest value."""
    zero = voxels.dtype.kind in "uc" or not float(np.nanmin(voxels)) < 0
    return voxels.dtype.type(0) if zero else np.nanmin(voxels)


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
