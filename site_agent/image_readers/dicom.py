"""DICOM: stored values -> the modality's units (HU for CT), colours -> RGB of 0..255, by pydicom's own functions.

The window that a file asks for (VOI LUT) is not applied: it was chosen for that image, and the study's intensities are public.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from medsynx.image_spec import ImageSpec
from site_agent.deid import jpeg12
from site_agent.image_readers import LeftOutError, Picture, finite

jpeg12.install()  # what the de-identification could read, training can

#: colours that are RGB once decoded
RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREY = ("MONOCHROME1", "MONOCHROME2")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(path: Path, spec: ImageSpec) -> Iterator[Picture]:
    """Frames at even steps. MONOCHROME1 is mirrored within the study's intensities, so that high values are bright."""
    ds = pydicom.dcmread(path)
    if not any(name in ds for name in PIXELS):
        raise LeftOutError("no pixels")
    photometric = str(ds.PhotometricInterpretation)
    for frame in spec.positions(int(ds.get("NumberOfFrames") or 1)):
        stored = pixel_array(ds, index=frame)  # YBR becomes RGB
        if photometric not in GREY:
            yield _colour(stored, ds, photometric)
            continue
        values = finite(apply_modality_lut(stored, _transformation(ds, frame)))
        if photometric == "MONOCHROME1":
            values = np.float32(sum(spec.intensity)) - values
        values[_padding(stored, ds)] = np.nan
        yield values[..., None]


def _colour(stored: NDArray[Any], ds: Dataset, photometric: str) -> Picture:
    if photometric == "PALETTE COLOR":
        rgb = apply_color_lut(stored, ds)[..., :3]
        peak = np.iinfo(rgb.dtype).max
    elif photometric in RGB:
        rgb, peak = stored, 2 ** int(ds.BitsStored) - 1
    else:
        raise LeftOutError("colours of an unknown kind")
    return finite(rgb) * np.float32(255 / peak)


def _transformation(ds: Dataset, frame: int) -> Dataset:
    """Where the rescale or lookup table of a frame stands: in an enhanced object its functional groups, else the object itself."""
    groups = [
        *ds.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1],
        *ds.get("SharedFunctionalGroupsSequence", []),
    ]
    for group in groups:
        for item in group.get("PixelValueTransformationSequence", []):
            return item
    return ds


def _padding(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_]:
    """Pixels that no detector saw. A value written with the wrong sign (US where pixels are SS) is taken by its bits."""
    first = ds.get("PixelPaddingValue")
    if first is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, bool)
    ends = np.array([first, ds.get("PixelPaddingRangeLimit", first)], np.int64).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())
