"""The outline of what is in a volume, and the two shapes that are plainly no head: a trunk, and a phantom."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

LARGEST_SECTION = 450.0  # cm2; a head's widest section has 250 to 300
SMALLEST_SECTION = 2.0  # cm2; less is noise
CONTRAST = 0.72  # share of the variance that the threshold explains: Gaussian noise split in two has 0.64
SOLID = (0.6, 0.93)  # of a section's own box: an ellipse has 0.785, a field of view that is all noise has 1
SHAPE = 0.95  # Dice coefficient with a ball or a cylinder; whole heads stay below 0.92
EVEN = 0.1  # coefficient of variation inside a phantom


def outline_of(small: Any) -> Any:
    """The largest object (SimpleITK image of 0 and 1): smoothed, Otsu's threshold, opened, holes filled slice by slice in three directions."""
    smooth = sitk.SmoothingRecursiveGaussian(small, 3.0) if min(small.GetSize()) > 4 else small
    values = sitk.GetArrayViewFromImage(smooth)
    low, high = (float(p) for p in np.percentile(values, [1, 98]))
    # the square root keeps bright fat near a coil from pulling the threshold above everything else
    flat = sitk.Sqrt(sitk.Clamp(smooth, sitk.sitkFloat32, low, max(high, low + 1e-6)) - low)
    mask = sitk.OtsuThreshold(flat, 0, 1, 128)
    mask = sitk.BinaryMorphologicalOpening(mask, [2] * 3 if min(mask.GetSize()) > 8 else [0] * 3)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
    return sitk.BinaryFillhole(parts == 1)


def is_trunk(small: Any, outline: Any) -> bool:
    """Whether every cross-section is wider than any head's, stands out from its background, and is a body's rather than the field of view's.

    ``small`` must say how it lies in space: the sections are those across the body.
    """
    axial = sitk.GetArrayFromImage(sitk.DICOMOrient(outline, "LPS")) > 0
    dx, dy, dz = sitk.DICOMOrient(outline, "LPS").GetSpacing()
    areas = [float(section.sum()) * dx * dy / 100 for section in axial]
    filled = [n for n, area in enumerate(areas) if area > SMALLEST_SECTION]
    if len(filled) * dz < 20 or min(areas[n] for n in filled) < LARGEST_SECTION or _contrast(small, outline) < CONTRAST:
        return False
    return all(SOLID[0] <= _solidity(axial[n]) <= SOLID[1] for n in filled)


def is_phantom(small: Any, outline: Any) -> bool:
    """Whether it is a ball or a cylinder with an even inside. A mask of a head is even too, but has neither shape."""
    inside = sitk.GetArrayFromImage(outline) > 0
    if inside.sum() < 500:
        return False
    core = sitk.GetArrayFromImage(sitk.BinaryErode(outline, [2] * 3)) > 0
    values = sitk.GetArrayViewFromImage(small)[core]
    if len(values) < 100 or float(np.std(values)) > EVEN * abs(float(np.mean(values))):
        return False
    at = np.argwhere(inside) * np.array(outline.GetSpacing()[::-1])
    axes = np.linalg.eigh(np.cov(at.T))
    grid = np.argwhere(np.ones_like(inside)) * np.array(outline.GetSpacing()[::-1])
    spread = np.sqrt(np.maximum(axes[0], 1e-6))
    along = ((grid - at.mean(axis=0)) @ axes[1]) / spread  # in standard deviations along each axis
    shapes = [(along**2).sum(axis=1) < 5]  # a ball has its surface at sqrt(5) of them
    for axis in range(3):  # a cylinder at 2 of them around, sqrt(3) along
        round_ = (np.delete(along, axis, axis=1) ** 2).sum(axis=1) < 4
        shapes.append(round_ & (np.abs(along[:, axis]) < 3**0.5))
    mine = inside.ravel()
    return any(2 * (mine & shape).sum() >= SHAPE * (mine.sum() + shape.sum()) for shape in shapes)


def _contrast(small: Any, outline: Any) -> float:
    values = sitk.GetArrayFromImage(small)
    inside = sitk.GetArrayFromImage(outline) > 0
    if inside.all() or not inside.any():
        return 0.0
    share, total = inside.mean(), float(values.var())
    between = share * (1 - share) * (float(values[inside].mean()) - float(values[~inside].mean())) ** 2
    return float(between / max(total, 1e-12))


def _solidity(section: NDArray[np.bool_]) -> float:
    rows, columns = np.flatnonzero(section.any(axis=1)), np.flatnonzero(section.any(axis=0))
    return float(section.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
