"""NIfTI-1: one file an image, height x width x 1 (RGB24 for colour), and a JSON sidecar.

NIfTI has no flag for synthetic data, so the mark stands in three places of the header (``descrip``, ``intent_name``, a comment extension) and,
since many tools drop extensions, in the sidecar.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np

from medsynx.image_files import Item, Scale
from medsynx.provenance import MARK, Provenance

#: Rows run downwards and columns to the right of the picture, shown as a radiologist sees a slice; no position in a body is meant.
AFFINE = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def encode(item: Item, scale: Scale, about: Provenance) -> dict[str, bytes]:
    """Whole numbers as stored, with slope and intercept in the header of a grey image."""
    colour = item.pixels.ndim == 3
    pixels = np.ascontiguousarray(item.pixels).view(RGB24)[..., 0] if colour else item.pixels
    image = nib.Nifti1Image(pixels[:, :, None], AFFINE)
    header = image.header
    header.set_xyzt_units("unknown")
    header["descrip"] = f"{MARK} MedSynX {about.body['generator_id'][:16]}".encode()  # 75 of 80 bytes
    header["intent_name"] = b"SYNTHETIC"
    if not colour:
        header.set_slope_inter(scale.slope, scale.intercept)
    sidecar = about.json(label=item.label, number=item.number, slope=scale.slope, intercept=scale.intercept)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", sidecar))
    return {".nii": image.to_bytes(), ".json": sidecar}
