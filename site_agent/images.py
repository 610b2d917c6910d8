"""A hospital's images -> float32 of the study's size, labelled and grouped by patient.

A site's file is an NPZ with ``images`` (N x height x width, and x 3 for RGB), ``labels`` (N) and, where patients have several images,
``patients`` (N). Nothing here looks at more than one image: intensities are scaled by the study's public range, sizes by resampling.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsynx.codec import EncodeReport
from medsynx.errors import MedsynxError
from medsynx.generators.base import ImagePatients
from medsynx.image_spec import ImageSpec
from medsynx.study import Study
from site_agent.image_readers import NOT_FINITE
from site_agent.ingest import LocalTable, Lots, draw_lots

MAX_BYTES = 2**31  #: of each array of a file, as stored and as loaded
CHUNK = 1024  #: images scaled at a time
NO_LABEL, STRANGE_LABEL = "no label", "label outside the study"  #: reasons to leave an image out
Raw = dict[str, NDArray[Any]]


def read_images(path: Path, part: Literal["train", "test"] = "train") -> Raw:
    """The arrays ``images``, ``labels`` and ``patients`` (where given) of an NPZ, as stored. Sizes are checked before anything is unpacked.

    A file in MedMNIST's layout has several parts (``train_images``, ``test_labels``, ...); of such a file ``part`` is read.

    Raises:
        MedsynxError: ``images-unreadable`` or ``column-missing``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
            prefix = "" if "images" in entries else f"{part}_"
            wanted = [n for n in ("images", "labels", "patients") if prefix + n in entries]
            for name in wanted:
                _check_header(path, name, archive, entries[prefix + name])
        with np.load(path, allow_pickle=False) as held:
            arrays: Raw = {name: held[prefix + name] for name in wanted}
    except OSError as error:
        raise MedsynxError("images-unreadable", f"{path.name}: {error.strerror or 'cannot be read'}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise MedsynxError("images-unreadable", f"{path.name} is not an NPZ file, or damaged") from None
    for name in ("images", "labels"):
        if name not in arrays:
            raise MedsynxError(
                "column-missing", f"{path.name} has no array `{name}`", hint=f"Add `{name}` to the NPZ file."
            )
    return arrays


def _check_header(path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse objects (images of mixed sizes are stored so) and arrays that would not fit in memory, from the first bytes alone."""
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not a plain array")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise MedsynxError(
            "images-unreadable", f"{path.name}: `{name}` holds objects; images of one file have one size"
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES or entry.file_size > MAX_BYTES:
        raise MedsynxError("images-unreadable", f"{path.name}: `{name}` is larger than {MAX_BYTES // 2**20:,} MiB")


def prepare_images(raw: Raw, study: Study, key: bytes, *, strict: bool = False) -> LocalTable:
    """Scale, label, cap and split a site's images.

    Images without a label, with one the study lacks or with pixels that are no finite numbers are left out and counted; a class without images is no
    error. Whether an image is left out follows from it alone and before anybody's images are capped, so that it moves no other patient.

    Args:
        raw: as from :func:`read_images`.
        key: the site's secret.
        strict: refuse such images, and patients with more of them than the study's cap.

    Raises:
        MedsynxError: ``images-unreadable``, ``column-missing``, ``table-empty``, ``value-not-finite``, ``level-unknown``, ``patient-duplicate``.
    """
    spec = study.image
    assert spec is not None
    raw = _sections(raw, spec)
    images, count = _channels_last(raw["images"], spec), len(raw["images"])
    if count == 0:
        raise MedsynxError("table-empty", "there are no images", hint="Give a file with at least one image.")
    code = label_codes(_column(raw, "labels", count), spec, study.missing_values)
    left_out = {NO_LABEL: int((code == -2).sum()), STRANGE_LABEL: int((code == -1).sum())}
    if strict and any(left_out.values()):
        raise MedsynxError("level-unknown", "; ".join(f"{n} images: {why}" for why, n in left_out.items() if n))
    ids = _patient_ids(raw, count, study)
    at = np.flatnonzero(code >= 0)
    if not len(at):
        raise MedsynxError("table-empty", "no image has a label of the study", hint="See `image.classes` of the study.")
    labelled, at = len(at), at[_finite(images, at)]
    if unfit := labelled - len(at):
        left_out[NOT_FINITE] = unfit
        if strict or not len(at):
            raise MedsynxError("value-not-finite", f"{unfit} of {count} images: {NOT_FINITE}")
    own = None if ids is None else [ids[i] for i in at]
    # A record's text names its patient where nothing else does: it is what the file says, so that no study's order of classes moves a patient from
    # one part to another. The patient is in it since which of their images are kept must not depend on others who have the same image.
    stored = [str(v).strip() for v in _column(raw, "labels", count).tolist()]
    texts = [f"{hashlib.sha256(images[i].tobytes()).hexdigest()} {stored[i]} {ids[i] if ids else ''}" for i in at]
    drawn = draw_lots(texts, own, key, study.privacy.max_records_per_patient, strict=strict)
    at = at[drawn.kept]
    scaled, clipped = scale(images[at], spec)
    report = EncodeReport(rows=count, clipped={"images": clipped} if clipped else {}, left_out=left_out)
    return local_images(scaled, code[at], drawn, report)


def local_images(
    images: NDArray[np.float32], codes: NDArray[np.int64], drawn: Lots, report: EncodeReport
) -> LocalTable:
    """The drawn images (N, channels, height, width) and the codes of their classes (N), by part."""
    parts = {p: ImagePatients(codes[m][:, None], drawn.numbers(m), images[m]) for p, m in drawn.masks.items()}
    return LocalTable(parts, report, drawn.capped, drawn.marks, drawn.duplicates)


def check_room(count: int, spec: ImageSpec) -> None:
    """Raise ``images-unreadable`` when so many images are above :data:`MAX_BYTES` at the study's size."""
    if 4 * count * math.prod(spec.shape) > MAX_BYTES:
        raise MedsynxError(
            "images-unreadable", f"the images take more than {MAX_BYTES // 2**20:,} MiB at the study's size"
        )


def scale(images: NDArray[Any], spec: ImageSpec) -> tuple[NDArray[np.float32], int]:
    """Stored images (N, height, width, channels) to 0..1 (N, channels, study's height, study's width); see :func:`to_unit`.

    Returns:
        The images, and how many had pixels outside the study's intensities.
    """
    check_room(len(images), spec)
    height, width, channels = spec.shape
    out, clipped = np.empty((len(images), channels, height, width), np.float32), 0
    for start in range(0, len(images), CHUNK):
        out[start : start + CHUNK], outside = to_unit(images[start : start + CHUNK].astype(np.float32), spec)
        clipped += outside
    return out, clipped


def _finite(images: NDArray[Any], at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these images hold finite numbers only, as float32 too."""
    if images.dtype.kind != "f":
        return np.ones(len(at), bool)
    out = np.empty(len(at), bool)
    with np.errstate(over="ignore"):
        for start in range(0, len(at), CHUNK):
            chunk = images[at[start : start + CHUNK]].astype(np.float32)
            out[start : start + CHUNK] = np.isfinite(chunk).all(axis=(1, 2, 3))
    return out


def to_unit(images: NDArray[np.float32], spec: ImageSpec) -> tuple[NDArray[np.float32], int]:
    """Images (N, height, width, channels) to 0..1 (N, channels, study's height, study's width), each by itself; NaN is padding and becomes 0.

    Another size is resampled by Pillow's bilinear filter (which averages when it shrinks); another aspect ratio is centred between margins of 0.

    Returns:
        The images, and how many had pixels outside the study's intensities (0 where the study goes by percentiles).
    """
    height, width, _ = spec.shape
    low, high = map(np.float32, spec.intensity)
    clipped = 0
    if spec.percentiles:
        unit = np.stack([_between(image, *np.nanpercentile(image, spec.percentiles)) for image in images])
    else:
        clipped = int(((images < low) | (images > high)).any(axis=(1, 2, 3)).sum())
        unit = _between(images, low, high)
    unit = unit.transpose(0, 3, 1, 2)
    return (unit if unit.shape[2:] == (height, width) else _resample(unit, height, width)), clipped


def _between(images: NDArray[np.float32], low: np.floating[Any], high: np.floating[Any]) -> NDArray[np.float32]:
    """Values from ``low`` to ``high`` as 0..1, where both are one value (percentiles of a flat image) those up to one above it."""
    span = np.float32(high - low) or np.float32(1)
    return np.nan_to_num(np.clip((images - np.float32(low)) / span, 0, 1), copy=False)


def _resample(images: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    from PIL import Image, ImageOps

    def one(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(ImageOps.pad(Image.fromarray(plane), (width, height), Image.Resampling.BILINEAR, color=0))

    return np.stack([np.stack([one(np.ascontiguousarray(plane)) for plane in image]) for image in images])


def label_codes(labels: NDArray[Any], spec: ImageSpec, missing: tuple[str, ...]) -> NDArray[np.int64]:
    """Position of each label's class; -1 for a label outside the study, -2 for none."""

    def code(value: Any) -> int:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip()
        return spec.spelled.get(text, -2 if text in missing else -1)

    known: dict[Any, int] = {}
    values = labels.tolist()
    return np.array([known[v] if v in known else known.setdefault(v, code(v)) for v in values], np.int64)


def _sections(raw: Raw, spec: ImageSpec) -> Raw:
    """Volumes (N x sections x height x width) as their sections, where the study says how many; labels and patients repeat."""
    volumes = raw["images"]
    if spec.slices is None or spec.shape[2] == 3 or volumes.ndim != 4 or 0 in volumes.shape:
        return raw
    chosen, count = spec.positions(volumes.shape[1]), len(volumes)
    repeated = {n: np.repeat(_column(raw, n, count), len(chosen)) for n in raw if n != "images"}
    return {"images": volumes[:, chosen].reshape(-1, *volumes.shape[2:]), **repeated}


def _channels_last(images: NDArray[Any], spec: ImageSpec) -> NDArray[Any]:
    if images.dtype.kind not in "buif":
        raise MedsynxError("images-unreadable", "`images` does not hold real numbers")
    channels = spec.shape[2]
    if images.ndim == 3 and channels == 1 and min(images.shape[1:]) >= 1:
        return images[..., None]
    if images.ndim == 4 and images.shape[3] == channels and min(images.shape[1:]) >= 1:
        return images
    kind = "RGB images (N x height x width x 3)" if channels == 3 else "grey images (N x height x width)"
    raise MedsynxError(
        "images-unreadable",
        f"the study asks for {kind}, the file holds {' x '.join(map(str, ('N', *images.shape[1:])))}",
    )


def _column(raw: Raw, name: str, count: int) -> NDArray[Any]:
    """An array of one value an image; N x 1 is taken as N."""
    array = raw[name]
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.shape != (count,) or array.dtype.kind not in "buifUS":
        raise MedsynxError("images-unreadable", f"`{name}` is not one number or word for each of the images")
    return array


def _patient_ids(raw: Raw, count: int, study: Study) -> list[str] | None:
    if "patients" not in raw:
        if study.privacy.max_records_per_patient > 1:  # else each image would be protected as if it were a patient
            raise MedsynxError(
                "column-missing",
                "the study counts several images a patient, and the file does not say whose they are",
                hint="Add `patients`, the patient of each image.",
            )
        return None
    ids = [
        v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
        for v in _column(raw, "patients", count).tolist()
    ]
    blank = sum(i.strip() in study.missing_values for i in ids)
    if blank:
        raise MedsynxError(
            "column-missing",
            f"`patients`: {blank} of {count} images have no patient",
            hint="Name the patient of each image.",
        )
    return [i.strip() for i in ids]
