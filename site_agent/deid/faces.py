"""Is it a head, and where is its face? Every volume may be one until something shows that it is not; a doubt is quarantined.

``Not a head`` is a finding, never a default: too few samples or too little room for a face, nothing but one value, a trunk that is wider than any
head in every section, or a phantom. Whatever else is laid under the template, and is passed on only if the template fits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from site_agent.deid.outline import is_phantom, is_trunk, outline_of
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.template import Match, isotropic, keep_mask, lay_over

FIT, OVERLAP = (
    -0.62,
    0.85,
)  # heads were beyond both, heads turned over and other volumes short of one (benchmarks/deid/defacing.py)
SIZE = (0.5, 1.35)  # of the mean head
UNEVEN = 1.45  # between the axes of one head
TURN = 50.0  # degrees
LEAST_REMOVED, MOST_REMOVED = 0.01, 0.45  # share of the outline; slabs of the front of a head lose most
FEWEST_SAMPLES = 24  # along the second-longest side, and cubed in all: fewer show no face
SMALLEST_VIEW = 75.0  # mm of the second-longest side: a newborn's face is longer
SPACING = (0.2, 20.0)  # mm; a voxel that is none of these is a mistake about the unit
CT_AIR, CT_SHARE = -100.0, 0.01  # Hounsfield units, and the share of voxels below


@dataclass(frozen=True)
class Verdict:
    """``kind``: ``not a head``, ``face removed`` or ``no face in view``; with what it rests on."""

    kind: str
    fit: float | None
    removed: float
    seconds: float = 0.0
    keep: NDArray[np.bool_] | None = None


def find_face(volume: NDArray[Any], affine: NDArray[Any], *, placed: bool = True) -> Verdict:
    """Decide on one volume.

    Args:
        volume: (i, j, k) samples in their physical scale.
        affine: 4x4, voxel to millimetres (RAS+).
        placed: whether the affine was stated; without it neither size nor orientation are known.

    Returns:
        The verdict; ``keep`` (i, j, k) is False where the face is.

    Raises:
        Quarantine: ``head-uncertain``, ``head-ct`` or ``face-remains``.
    """
    started = time.perf_counter()
    image = _image(volume, affine)
    spacing = np.array(image.GetSpacing())
    placed = placed and bool(np.all((spacing >= SPACING[0]) & (spacing <= SPACING[1])))
    if _shows_nothing(volume, spacing, placed):
        return Verdict("not a head", None, 0.0, time.perf_counter() - started)
    if min(volume.shape) < 3 or not placed:
        raise Quarantine("head-uncertain", "single sections, or a place in space that is not stated")
    small = isotropic(image)
    outline = outline_of(small)
    if is_phantom(small, outline):
        return Verdict("not a head", None, 0.0, time.perf_counter() - started)
    trunk = is_trunk(small, outline)
    if _looks_like_ct(volume):
        if not trunk:
            raise Quarantine("head-ct")
        return Verdict("not a head", None, 0.0, time.perf_counter() - started)
    match = lay_over(small, outline)
    doubt = _doubt(match)
    if doubt and trunk:
        return Verdict("not a head", match.fit, 0.0, time.perf_counter() - started)
    if doubt:
        raise Quarantine("head-uncertain", doubt)
    keep = np.ascontiguousarray(sitk.GetArrayFromImage(keep_mask(match, image)).transpose(2, 1, 0) > 0)
    kept = sitk.GetArrayFromImage(keep_mask(match, small)) > 0
    head = sitk.GetArrayViewFromImage(outline) > 0
    removed = float((head & ~kept).sum() / max(1, head.sum()))
    if removed > MOST_REMOVED:
        raise Quarantine("face-remains", f"{removed:.1%} of the head would go")
    kind = "face removed" if removed >= LEAST_REMOVED else "no face in view"
    return Verdict(kind, match.fit, removed, time.perf_counter() - started, keep)


def _shows_nothing(volume: NDArray[Any], spacing: NDArray[Any], placed: bool) -> bool:
    """Too few samples, too small a view, or one value throughout."""
    side = sorted(volume.shape)[1] < FEWEST_SAMPLES
    if (side and volume.size < FEWEST_SAMPLES**3) or float(volume.max()) <= float(volume.min()):
        return True
    # a view of single samples is no view: a head may be folded into one long row
    return placed and min(volume.shape) >= 3 and float(sorted(spacing * volume.shape)[1]) < SMALLEST_VIEW


def _looks_like_ct(volume: NDArray[Any]) -> bool:
    """Air below zero; or, stored with an offset, air and soft tissue 1000 apart and tissue nearly even."""
    if float((volume <= CT_AIR).mean()) >= CT_SHARE:
        return True
    low, high = np.percentile(volume, [1, 99])
    body = volume[volume > (low + high) / 2]
    if high - low < 900 or not len(body):
        return False
    lower, middle, upper = np.percentile(body, [25, 50, 75])
    return bool(950 <= middle - low <= 1150 and upper - lower < 100)


def _doubt(match: Match) -> str:
    """Why the template's place is not to be believed, or nothing."""
    if match.fit > FIT:
        return f"mutual information {match.fit:.2f}, {FIT:.2f} is needed"
    if match.overlap < OVERLAP:
        return f"outlines overlap by {match.overlap:.2f}, {OVERLAP:.2f} is needed"
    if (
        match.turn > TURN
        or match.size[0] < SIZE[0]
        or match.size[2] > SIZE[1]
        or match.size[2] > UNEVEN * match.size[0]
    ):
        return "the head found has not a head's size or place"
    return ""


def _image(volume: NDArray[Any], affine: NDArray[Any]) -> Any:
    """A SimpleITK image; nibabel is RAS+, ITK is LPS+."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.astype(np.float32, copy=False).transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    if not np.all(np.isfinite(lps)) or np.any(spacing < 1e-9):
        raise Quarantine("damaged", "the affine has no volume")
    # a sheared affine has no exact ITK counterpart; its nearest rotation serves to find a face
    u, _, vt = np.linalg.svd(lps[:3, :3] / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((u @ vt).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image
