"""Is it a head, and where is its face: pydeface's template and face mask (MIT), registered with SimpleITK on a 2 mm copy.

Two questions, in this order, because a registration always returns something. Does any section have the size of a head? Does the template
fit well enough to trust where its face lies? What falls between yes and no is quarantined.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from site_agent.deid.quarantine import Quarantine

RESOLUTION = 2.0  # mm
FIT = -0.6  # Mattes mutual information: heads were below -0.78, other volumes above -0.42 (docs/deidentification.md)
LEAST_REMOVED, MOST_REMOVED = (
    0.01,
    0.12,
)  # share of the head: 3-6 % for whole and half heads, 9 % for the template itself
HEAD_WIDTH, HEAD_LENGTH = (
    (105.0, 215.0),
    (125.0, 270.0),
)  # mm; an adult's head with ears and nose, with a margin for children
HEAD_HEIGHT = 30.0  # mm of sections of that size
AIR_IN_CT = -900.0  # Hounsfield units


@dataclass(frozen=True)
class Verdict:
    """``kind``: ``not a head``, ``face removed`` or ``no face in view``; with what it rests on."""

    kind: str
    fit: float | None
    removed: float
    seconds: float = 0.0
    keep: NDArray[np.bool_] | None = None


def find_face(volume: NDArray[Any], affine: NDArray[Any]) -> Verdict:
    """Decide on one volume.

    Args:
        volume: (i, j, k) samples in their physical scale.
        affine: 4x4, voxel to millimetres (RAS+).

    Returns:
        The verdict; ``keep`` (i, j, k) is False where the face is.

    Raises:
        Quarantine: ``head-uncertain``, ``head-ct`` or ``face-remains``.
    """
    import time

    started = time.perf_counter()
    image = _image(volume, affine)
    small = _isotropic(image)
    if not _head_sized(small):
        return Verdict("not a head", None, 0.0, time.perf_counter() - started)
    if float(np.min(volume)) <= AIR_IN_CT:
        raise Quarantine("head-ct")
    transform, fit = _register(small)
    if fit > FIT:
        raise Quarantine("head-uncertain", f"mutual information {fit:.2f}, {FIT:.2f} is needed")
    _, mask = _template()
    keep = sitk.GetArrayFromImage(sitk.Resample(mask, image, transform, sitk.sitkNearestNeighbor, 1.0)) > 0.5
    keep = np.ascontiguousarray(keep.transpose(2, 1, 0))
    head = np.abs(volume) > np.percentile(np.abs(volume), 99) * 0.08
    removed = float((head & ~keep).sum() / max(1, head.sum()))
    if removed > MOST_REMOVED:
        raise Quarantine("face-remains", f"{removed:.1%} of the head would go")
    kind = "face removed" if removed >= LEAST_REMOVED else "no face in view"
    return Verdict(kind, fit, removed, time.perf_counter() - started, keep)


def _image(volume: NDArray[Any], affine: NDArray[Any]) -> Any:
    """A SimpleITK image; nibabel is RAS+, ITK is LPS+."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.astype(np.float32).transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    if not np.all(np.isfinite(lps)) or np.any(spacing < 1e-4):
        raise Quarantine("damaged", "the affine has no volume")
    # a sheared affine has no exact ITK counterpart; its nearest rotation serves to find a face
    u, _, vt = np.linalg.svd(lps[:3, :3] / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((u @ vt).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _isotropic(image: Any) -> Any:
    spacing = [max(RESOLUTION, s) for s in image.GetSpacing()]
    size = [max(4, round(n * s / p)) for n, s, p in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    smooth = sitk.DiscreteGaussian(image, [1.0] * 3) if min(image.GetSize()) > 4 else image
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), 0.0
    )


def _head_sized(small: Any) -> bool:
    """Whether enough sections have the width and length of a head; by the object's outline, whatever its contrast."""
    axial = sitk.DICOMOrient(small, "LPS")
    values = sitk.GetArrayFromImage(axial)  # (foot to head, front to back, right to left)
    dx, dy, dz = axial.GetSpacing()
    low, high = np.percentile(values, [1, 99])
    if high <= low:
        return False
    inside = values > low + 0.12 * (high - low)
    sections = 0
    for section in inside:
        if section.sum() * dx * dy < 2000:  # 20 cm2: smaller than any section of a head
            continue
        width = _extent(section.any(axis=0)) * dx
        length = _extent(section.any(axis=1)) * dy
        sections += HEAD_WIDTH[0] <= width <= HEAD_WIDTH[1] and HEAD_LENGTH[0] <= length <= HEAD_LENGTH[1]
    return sections * dz >= HEAD_HEIGHT


def _extent(line: NDArray[np.bool_]) -> int:
    at = np.flatnonzero(line)
    return int(at[-1] - at[0] + 1) if len(at) else 0


@cache
def _template() -> tuple[Any, Any]:
    """The mean head (2 mm copy) and its face mask (0 where the face is) from pydeface's wheel."""
    spec = importlib.util.find_spec("pydeface")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    head = sitk.ReadImage(str(data / "mean_reg2mean.nii.gz"), sitk.sitkFloat32)
    mask = sitk.ReadImage(str(data / "facemask.nii.gz"), sitk.sitkFloat32)
    return _isotropic(head), mask


def _register(fixed: Any) -> tuple[Any, float]:
    """Similarity, then affine, on Mattes mutual information. The sampling seed is fixed: it draws voxels, not noise."""
    head, _ = _template()
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.15, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 120)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    start = sitk.CenteredTransformInitializer(
        fixed, head, sitk.Similarity3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    similarity = sitk.Similarity3DTransform(start)
    try:
        method.SetInitialTransform(similarity, inPlace=True)
        method.Execute(fixed, head)
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(similarity.GetMatrix())
        affine.SetTranslation(similarity.GetTranslation())
        affine.SetCenter(similarity.GetCenter())
        method.SetInitialTransform(affine, inPlace=True)
        method.Execute(fixed, head)
    except RuntimeError:  # ITK: too few samples map inside; the volumes do not overlap
        raise Quarantine("head-uncertain", "the template does not overlap") from None
    return affine, float(method.GetMetricValue())
