"""The mean head and its face mask from pydeface's wheel (MIT), laid over a volume with SimpleITK.

A registration always returns something, so it comes with three measures of whether to believe it: mutual information, how well the outlines
overlap where both are in view, and whether the head it found has a head's proportions.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from site_agent.deid.outline import outline_of
from site_agent.deid.quarantine import Quarantine

RESOLUTION = 2.0  # mm
SIZES = (1.0, 0.8, 0.62)  # of the head sought beside the mean one: adult, child, infant
MARGIN = 20.0  # mm of air kept around the outline
TALLEST = 280.0  # mm from the crown that are searched; below are neck and shoulders
SAMPLES = 60_000
BEYOND = (
    40,
    80,
)  # voxels of the mask by which the face reaches past the template in front (nose) and below (chin, throat)


@dataclass(frozen=True)
class Match:
    """Where the template lies. ``transform`` maps points of the volume to points of the template (mm, LPS).

    Attributes:
        fit: Mattes mutual information, negative; lower is better.
        overlap: Dice coefficient of the two outlines in the common field of view.
        size: the head's size as a share of the template's, along its three axes, ascending.
        turn: degrees between the two.
    """

    transform: Any
    fit: float
    overlap: float
    size: tuple[float, float, float]
    turn: float


def isotropic(image: Any, spacing: float = RESOLUTION) -> Any:
    """A smoothed copy at 2 mm or, along an axis that is coarser, at its own spacing."""
    sides = [max(spacing, s) for s in image.GetSpacing()]
    size = [max(1, round(n * s / p)) for n, s, p in zip(image.GetSize(), image.GetSpacing(), sides, strict=True)]
    smooth = sitk.DiscreteGaussian(image, [1.0] * 3) if min(image.GetSize()) > 4 else image
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), sides, image.GetDirection(), 0.0
    )


@cache
def _template() -> tuple[Any, Any, Any]:
    """The mean head (2 mm copy), its outline, and its face mask (0 where the face is), which reaches past the template's edge."""
    spec = importlib.util.find_spec("pydeface")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    head = isotropic(sitk.ReadImage(str(data / "mean_reg2mean.nii.gz"), sitk.sitkFloat32))
    mask = sitk.ReadImage(str(data / "facemask.nii.gz"), sitk.sitkFloat32)
    mask = sitk.ZeroFluxNeumannPad(mask, [0, 0, BEYOND[1]], [0, BEYOND[0], 0])
    return head, outline_of(head), mask


def keep_mask(match: Match, image: Any) -> Any:
    """1 where the image may stay, 0 in its face; a SimpleITK image of bytes on the grid of ``image``."""
    mask = _template()[2]
    return sitk.Resample(mask, image, match.transform, sitk.sitkNearestNeighbor, 1.0, sitk.sitkUInt8)


def lay_over(small: Any, outline: Any) -> Match:
    """Find the head in a 2 mm copy, given its outline. Raises ``head-uncertain`` where the two do not overlap at all."""
    fixed, seen = _crop(small, outline)
    head, head_outline, _ = _template()
    try:
        coarse = min((_refine(fixed, start, 8, 40) for start in _starts(seen, head_outline)), key=_by_fit)
        similarity, rigid_fit = _refine(fixed, coarse[0], 4, 60)
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(similarity.GetMatrix())
        affine.SetTranslation(similarity.GetTranslation())
        affine.SetCenter(similarity.GetCenter())
        # twelve parameters can run away where seven do not; then the better of the two goes on, in smaller steps
        loose = min((affine, rigid_fit), _refine(fixed, affine, 4, 60, first=1.0), key=_by_fit)
        transform, fit = min(_refine(fixed, loose[0], 2, 40, first=0.5), _refine(fixed, loose[0], 2, 0), key=_by_fit)
    except RuntimeError:  # ITK: too few samples map inside; the volumes do not overlap
        raise Quarantine("head-uncertain", "the template does not overlap") from None
    matrix = np.linalg.inv(np.array(transform.GetMatrix()).reshape(3, 3))
    u, sizes, vt = np.linalg.svd(matrix)
    turn = float(np.degrees(np.arccos(np.clip((np.trace(u @ vt) - 1) / 2, -1, 1))))
    small_, middle, large = sorted(float(s) for s in sizes)
    return Match(transform, fit, _overlap(seen, head, head_outline, transform), (small_, middle, large), turn)


def _overlap(seen: Any, head: Any, head_outline: Any, transform: Any) -> float:
    placed = sitk.GetArrayFromImage(sitk.Resample(head_outline, seen, transform, sitk.sitkNearestNeighbor, 0)) > 0
    inside = (
        sitk.GetArrayFromImage(sitk.Resample(head_outline * 0 + 1, seen, transform, sitk.sitkNearestNeighbor, 0)) > 0
    )
    mine = (sitk.GetArrayFromImage(seen) > 0) & inside
    return float(2 * (mine & placed).sum() / max(1, mine.sum() + placed.sum()))


def _crop(small: Any, outline: Any) -> tuple[Any, Any]:
    """Both images, cut to the outline's box and its upper part. Raises ``head-uncertain`` for an empty outline."""
    at = np.argwhere(sitk.GetArrayFromImage(outline) > 0)[:, ::-1]  # (x, y, z)
    if len(at) == 0:
        raise Quarantine("head-uncertain", "no outline")
    direction = np.array(small.GetDirection()).reshape(3, 3)
    spacing = np.array(small.GetSpacing())
    height = at @ (direction[2] * spacing)  # mm towards the crown
    at = at[height >= height.max() - TALLEST]
    pad = np.ceil(MARGIN / spacing).astype(int)
    low = np.maximum(at.min(axis=0) - pad, 0)
    high = np.minimum(at.max(axis=0) + pad + 1, small.GetSize())
    size, low = [int(n) for n in high - low], [int(n) for n in low]
    return sitk.RegionOfInterest(small, size, low), sitk.RegionOfInterest(outline, size, low)


def _points(outline: Any) -> Any:
    """(n, 3) points of an outline in mm, LPS."""
    at = np.argwhere(sitk.GetArrayFromImage(outline) > 0)[:, ::-1]
    direction = np.array(outline.GetDirection()).reshape(3, 3)
    return at * np.array(outline.GetSpacing()) @ direction.T + np.array(outline.GetOrigin())


def _starts(seen: Any, head_outline: Any) -> list[Any]:
    """Where to begin: centre on centre and crown on crown, each for an adult's, a child's and an infant's head."""
    mine, theirs = _points(seen), _points(head_outline)
    starts = []
    for size, crown in product(SIZES, (False, True)):
        to, by = theirs.mean(axis=0), mine.mean(axis=0)
        if crown:  # the upper 150 mm of a head are its own whatever lies below
            to = theirs[theirs[:, 2] > theirs[:, 2].max() - 150].mean(axis=0)
            by = mine[mine[:, 2] > mine[:, 2].max() - 150 * size].mean(axis=0)
            to[2], by[2] = theirs[:, 2].max(), mine[:, 2].max()
        start = sitk.Similarity3DTransform()
        start.SetCenter(by.tolist())
        start.SetTranslation((to - by).tolist())
        start.SetScale(1 / size)
        starts.append(start)
    return starts


def _by_fit(found: tuple[Any, float]) -> float:
    return found[1]


def _refine(fixed: Any, start: Any, millimetres: int, steps: int, first: float | None = None) -> tuple[Any, float]:
    """Mutual information from a start, both images at a resolution, the first step in mm; no steps only measure.

    The sampling seed is fixed: it draws voxels, not noise.
    """
    shrink = max(1, millimetres // round(RESOLUTION))
    at = sitk.Shrink(
        sitk.SmoothingRecursiveGaussian(fixed, shrink / 2 * RESOLUTION) if shrink > 1 else fixed, [shrink] * 3
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    voxels = at.GetNumberOfPixels()
    if voxels > SAMPLES:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(SAMPLES / voxels, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(first or millimetres / 2, millimetres / 200, max(1, steps))
    method.SetOptimizerScalesFromPhysicalShift()
    transform = type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    if not steps:
        return transform, float(method.MetricEvaluate(at, _head_at(shrink)))
    method.Execute(at, _head_at(shrink))
    return transform, float(method.GetMetricValue())


@cache
def _head_at(shrink: int) -> Any:
    head = _template()[0]
    return sitk.SmoothingRecursiveGaussian(head, shrink / 2 * RESOLUTION) if shrink > 1 else head
