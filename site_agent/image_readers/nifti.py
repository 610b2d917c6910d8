"""NIfTI: sections of a volume in canonical orientation, drawn as DICOM shows them. Of several volumes in one file the first is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medsynx.image_spec import ImageSpec
from site_agent.image_readers import Picture, finite

#: axis of a volume in RAS+ that a plane is perpendicular to
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}


def read(path: Path, spec: ImageSpec) -> Iterator[Picture]:
    """Sections at even steps, anterior or superior up, the patient's right at the left (sagittal: anterior at the left). Scaled by ``scl_slope``."""
    volume: Any = nib.load(path)
    shape = (*volume.shape, 1, 1)[:3]
    orientation = nib.io_orientation(volume.affine)
    across = ACROSS[spec.plane]
    (axis,) = np.flatnonzero(orientation[:, 0] == across)
    for position in spec.positions(shape[axis]):
        at = position if orientation[axis, 1] > 0 else shape[axis] - 1 - position
        box = [slice(at, at + 1) if a == axis else slice(None) for a in range(3)]
        wanted = (*box, *(0,) * (volume.ndim - 3))[: volume.ndim]
        stored = np.asarray(volume.dataobj[wanted])  # one section is read from the file, not the volume
        section = nib.apply_orientation(stored.reshape((*stored.shape, 1, 1)[:3]), orientation)
        plain = np.take(section, 0, axis=across).T[::-1, ::-1]
        if plain.dtype.names:  # RGB24
            yield finite(np.stack([plain[n] for n in plain.dtype.names[:3]], axis=-1))
        else:
            yield finite(plain)[..., None]
