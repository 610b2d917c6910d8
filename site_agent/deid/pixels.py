"""Burned-in text in DICOM pixels: rules first, then a text detector, black boxes on every frame, and the detector again on the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, convert_color_space, pack_bits
from pydicom.uid import ExplicitVRLittleEndian

from site_agent.deid import jpeg12
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.regions import known_regions, overlap
from site_agent.deid.streams import strip_frame
from site_agent.deid.textfinder import Box, Picture, find_text, to_picture, to_pictures

STORAGE = "1.2.840.10008.5.1.4.1.1."
#: CR, DX, MG, IO, CT, MR, NM, PET: anatomy in these looks like writing to a detector; in everything else it blanks on suspicion.
#: Storage classes, not the attribute Modality: a screen saved as Secondary Capture says CT too.
RADIOGRAPHIC = frozenset(
    STORAGE + c
    for c in "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 4 4.1 4.3 4.4 20 128 128.1 130 13.1.1 13.1.2 13.1.3 13.1.4".split()
)
#: computed by a machine from other images: labels and doses, no camera and no screen
COMPUTED = frozenset(STORAGE + c for c in "66.4 66.7 481.2".split())
jpeg12.install()
#: JPEG, JPEG-LS near lossless, JPEG 2000, HTJ2K: their rounding goes past the bits stored, and no overlay survives it
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 203))
SMALLEST = 12  # rows or columns below this cannot carry a legible word
MOST_BLANKED = 0.25
FRAMES_READ = 8
GRID = 16  # blocks a side, to tell frames apart
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
RED = (190, 40, 40)
PASSES = 4


@dataclass
class PixelResult:
    """What happened to the pixels. ``changed``: some were blanked.

    ``before`` and ``after`` are RGB thumbnails for the report; ``before`` has red where something was taken out, so the report shows it to nobody.
    """

    examined: bool = False
    changed: bool = False
    boxes: list[Box] = field(default_factory=list)
    rule: str = ""
    before: Picture | None = None
    after: Picture | None = None


def clean_pixels(ds: Dataset, *, site_rules: str = "", blank: bool = True) -> PixelResult:
    """Clean the pixel element of a data set in place; headers must still be those of the source (rules read them).

    Args:
        ds: a data set with ``file_meta``.
        site_rules: further regions in deid's language.
        blank: False strips code streams only, and quarantines what says it carries text.

    Raises:
        Quarantine: what cannot be decoded, located or blanked.
    """
    if not any(k in ds for k in PIXELS):
        return PixelResult()
    if "PixelData" in ds:
        _strip_container(ds)
    if not blank:
        if str(ds.get("BurnedInAnnotation", "")).upper() == "YES":
            raise Quarantine("pixel-rule")
        return PixelResult()
    sop_class = str(ds.get("SOPClassUID", "") or "")
    frames = _decode(ds)
    result = PixelResult(examined=True)
    rows, columns = frames.shape[1:3]
    if sop_class in COMPUTED or min(rows, columns) < SMALLEST:
        return result
    radiographic = sop_class in RADIOGRAPHIC
    found = [b for picture in _pictures(ds, frames) for b in find_text(picture, radiographic=radiographic)]
    regions, result.rule = known_regions(ds, rows, columns, site_rules, found)
    boxes = regions + list(dict.fromkeys(found))
    if not boxes:
        return result
    if "PixelData" not in ds:
        raise Quarantine("text-remains", "text in pixels of floating point")
    first, source = _rgb(ds, frames[:1])[0], frames.copy()
    seen = boxes
    for _ in range(PASSES):
        _blank(ds, frames, boxes)
        # a black box has edges a detector may take for strokes: what it finds now must be readable
        left = [b for picture in _pictures(ds, frames) for b in find_text(picture, radiographic=True)]
        boxes = [b for b in left if not covered(b, seen)]
        if not boxes:
            break
        seen = seen + boxes
    else:
        raise Quarantine("text-remains", f"{len(boxes)} boxes after {PASSES} passes")
    mask = np.zeros((rows, columns), bool)
    for x0, y0, x1, y1 in seen:
        mask[y0:y1, x0:x1] = True
    if np.array_equal(source, frames):  # a region that was black already
        return PixelResult(examined=True)
    if not result.rule and mask.mean() > MOST_BLANKED:
        raise Quarantine("mostly-text", f"{mask.mean():.0%}")
    result.boxes, result.changed = seen, True
    result.before, result.after = thumbnail(covered_in_red(first, mask)), thumbnail(_rgb(ds, frames[:1])[0])
    _store(ds, frames)
    return result


# -- decoding and storing


def _strip_container(ds: Dataset) -> None:
    """Only what decodes stays: no comments in code streams, no frames beyond the count, no bytes behind the last pixel."""
    syntax = ds.file_meta.TransferSyntaxUID
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    bits = [
        ds[group << 16 | element]
        for group in range(0x6000, 0x6100, 2)
        for element in (0x0100, 0x0102)
        if (group, element) in ds
    ]
    if any(e.value not in (None, "", 1 if e.tag.element == 0x0100 else 0) for e in bits):
        raise Quarantine("overlay-embedded")
    if syntax.is_encapsulated:
        try:
            old = list(generate_frames(ds.PixelData, number_of_frames=frames, extended_offsets=_offsets(ds)))
            new = [strip_frame(f, (int(ds.Rows), int(ds.Columns))) for f in old]
        except (ValueError, IndexError, EOFError, TypeError, AttributeError) as error:
            raise Quarantine("pixels-undecodable", type(error).__name__) from None
        if len(new) != frames:
            raise Quarantine("damaged", f"{len(new)} of {frames} frames")
        ds.PixelData = encapsulate(new)
        ds["PixelData"].is_undefined_length = True
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in ds:
                del ds[keyword]
        return
    expected = _expected_bytes(ds, frames)
    if expected and len(ds.PixelData) < expected:
        raise Quarantine("damaged", f"{len(ds.PixelData)} of {expected} bytes of pixels")
    if expected and len(ds.PixelData) > expected + expected % 2:
        ds.PixelData = ds.PixelData[:expected] + b"\0" * (expected % 2)


def _offsets(ds: Dataset) -> tuple[bytes, bytes] | None:
    table, lengths = ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths")
    return (table, lengths) if table and lengths else None


def _expected_bytes(ds: Dataset, frames: int) -> int:
    from pydicom.pixels.utils import get_expected_length

    try:
        return get_expected_length(ds, unit="bytes")
    except (AttributeError, TypeError, ValueError, KeyError):
        raise Quarantine("damaged", "the image's size is not declared") from None


def _decode(ds: Dataset) -> NDArray[Any]:
    """Samples as stored, shape (frames, rows, columns) or (frames, rows, columns, samples); the photometric interpretation is not converted."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(ds.file_meta.TransferSyntaxUID)
    except (NotImplementedError, AttributeError):
        raise Quarantine("transfer-syntax", str(ds.file_meta.TransferSyntaxUID)) from None
    try:
        values = decoder.as_array(ds, raw=True, correct_unused_bits=False)[0]  # type: ignore[arg-type]  # pydicom's hint is of a dict
    except MemoryError:
        raise Quarantine("too-large", "pixels") from None
    except Exception as error:  # decoders raise what they like; none of it is a picture
        raise Quarantine("pixels-undecodable", type(error).__name__) from None
    if ds.file_meta.TransferSyntaxUID not in LOSSY and _unused_bits(ds, values):
        raise Quarantine("overlay-embedded", "bits above those stored")
    many = int(ds.get("NumberOfFrames", 1) or 1) > 1
    return np.array(values if many else values[None])


def _unused_bits(ds: Dataset, values: NDArray[Any]) -> bool:
    """Whether bits outside BitsStored hold more than a sign: overlays were kept there (PS3.5 8.1.1, retired)."""
    allocated, stored = int(ds.BitsAllocated), int(ds.get("BitsStored", ds.BitsAllocated))
    if stored >= allocated or not np.issubdtype(values.dtype, np.integer):
        return False
    if int(ds.get("HighBit", stored - 1)) != stored - 1:
        return True
    free = values.dtype.itemsize * 8 - stored
    return not np.array_equal(values, (values << free) >> free)


def _store(ds: Dataset, frames: NDArray[Any]) -> None:
    """Write the samples back uncompressed: lossless for every depth, and the description stays true."""
    was_compressed = ds.file_meta.TransferSyntaxUID.is_encapsulated
    photometric = str(ds.PhotometricInterpretation)
    if was_compressed and photometric in ("YBR_ICT", "YBR_RCT"):
        ds.PhotometricInterpretation = "RGB"  # the wavelet decoders undo this transform themselves
    elif was_compressed and photometric.startswith("YBR_FULL"):
        # decoded samples are no longer subsampled, and several IODs allow YBR_FULL in compressed pixels only
        frames = convert_color_space(frames, photometric, "RGB", per_frame=True)
        ds.PhotometricInterpretation = "RGB"
    if int(ds.BitsAllocated) == 1:
        raw = bytes(pack_bits(frames.ravel(), pad=False))
    else:
        raw = np.ascontiguousarray(frames.astype(frames.dtype.newbyteorder("<"))).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OW" if int(ds.BitsAllocated) > 8 else "OB"
    ds["PixelData"].is_undefined_length = False
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    if was_compressed or not ds.file_meta.TransferSyntaxUID.is_little_endian:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


# -- what a viewer would see


def _rgb(ds: Dataset, frames: NDArray[Any]) -> list[Picture]:
    """Frames as a viewer shows them, 8 bit."""
    photometric = str(ds.get("PhotometricInterpretation", ""))
    out: list[Picture] = []
    for frame in frames:
        if photometric == "PALETTE COLOR":
            frame = apply_color_lut(frame, ds)
            frame = (
                (frame >> 8).astype(np.uint8)
                if frame.dtype == np.uint16 and frame.max() > 255
                else frame.astype(np.uint8)
            )
        elif (
            frame.ndim == 3
            and photometric in ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422")
            and frame.dtype == np.uint8
        ):
            frame = convert_color_space(frame, photometric, "RGB")
        elif frame.ndim == 3 and frame.dtype != np.uint8:
            frame = to_picture(frame)
        out.append(to_picture(frame))
    return out


def _pictures(ds: Dataset, frames: NDArray[Any]) -> list[Picture]:
    """What is read: every frame of a short series; of a long one, frames evenly spaced, those that differ most from the one before, and what is
    brightest and darkest in any frame."""
    if len(frames) <= FRAMES_READ:
        return _views(ds, frames)
    even = np.linspace(0, len(frames) - 1, FRAMES_READ - 2).round().astype(int)
    chosen = sorted({*even.tolist(), *_standing_out(frames)})
    if str(ds.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
        return _views(ds, frames[chosen]) + _views(ds, np.stack([frames.max(axis=0), frames.min(axis=0)]))
    brightest = darkest = _rgb(ds, frames[:1])[0]  # an entry's number says nothing of its brightness
    for k in range(1, len(frames)):
        shown = _rgb(ds, frames[k : k + 1])[0]
        brightest, darkest = np.maximum(brightest, shown), np.minimum(darkest, shown)
    return [*_views(ds, frames[chosen]), brightest, darkest]


def _views(ds: Dataset, frames: NDArray[Any]) -> list[Picture]:
    """Frames in every contrast that shows something."""
    if frames.ndim == 4 or str(ds.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        return _rgb(ds, frames)
    return [picture for frame in frames for picture in to_pictures(frame)]


def _standing_out(frames: NDArray[Any]) -> list[int]:
    """Frames in which some block of a grid changes, in its mean or its spread, far more than that block does between other frames.

    A page of text or a banner shown for one moment is such a frame; a beating heart is none.
    """
    rows, columns = frames.shape[1:3]
    height, width = -(-rows // GRID), -(-columns // GRID)
    starts = np.arange(0, rows, height), np.arange(0, columns, width)
    sizes = np.outer(np.diff([*starts[0], rows]), np.diff([*starts[1], columns]))
    features = []
    for frame in frames:
        flat = frame.astype(np.float32).reshape(rows, columns, -1).mean(axis=-1)
        mean, square = (_block_sums(v, *starts) / sizes for v in (flat, flat * flat))
        features.append(np.stack([mean, np.sqrt(np.maximum(square - mean * mean, 0))]))
    change = np.abs(np.diff(np.stack(features), axis=0))
    usual = np.median(change, axis=0) + 1e-3 * (change.max() + 1e-9)
    novelty = (change / usual).reshape(len(change), -1).max(axis=1)
    return [int(k) + 1 for k in np.argsort(novelty)[::-1][:FRAMES_READ]]


def _block_sums(values: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)


def _blank(ds: Dataset, frames: NDArray[Any], boxes: list[Box]) -> None:
    """Fill boxes on every frame with what shows as black."""
    photometric = str(ds.get("PhotometricInterpretation", ""))
    fill: Any = frames.min()
    if photometric == "MONOCHROME1":
        fill = frames.max()
    elif photometric == "PALETTE COLOR":
        entries = np.arange(int(frames.min()), int(frames.max()) + 1, dtype=frames.dtype)
        fill = entries[apply_color_lut(entries[None], ds)[0].astype(int).sum(axis=-1).argmin()]
    elif frames.ndim == 4 and photometric.startswith("YBR_") and photometric not in ("YBR_ICT", "YBR_RCT"):
        fill = np.array([0] + [1 << int(ds.BitsStored) - 1] * (frames.shape[3] - 1), frames.dtype)
    elif frames.ndim == 4:
        fill = 0
    for x0, y0, x1, y1 in boxes:
        frames[:, y0:y1, x0:x1] = fill


def covered(box: Box, seen: list[Box]) -> bool:
    """Whether a detection is only the edge or inside of a box already black."""
    x0, y0, x1, y1 = box
    area = max(1, (x1 - x0) * (y1 - y0))
    return any(overlap(box, b) >= 0.7 * area for b in seen)


def covered_in_red(picture: Picture, mask: NDArray[np.bool_]) -> Picture:
    """An RGB copy with flat red where the mask is, rows and columns as the picture's."""
    colour = np.stack([picture] * 3, -1) if picture.ndim == 2 else picture.copy()
    colour[mask] = RED
    return colour


def thumbnail(picture: Picture, longest: int = 320) -> Picture:
    """A smaller copy for the report."""
    import cv2

    scale = min(1.0, longest / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA).astype(np.uint8)
