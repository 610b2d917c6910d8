"""Writing synthetic images: one NPZ in the form that a site's images have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsynx.image_samplers import Images
from medsynx.image_spec import ImageSpec


def write_images(path: Path, images: Images, spec: ImageSpec) -> None:
    """``images`` (N x height x width, and x 3 for RGB) in the study's intensities, ``labels`` (N) as names of classes; whole or not at all.

    Pixels are uint8 where the study's intensities lie in 0-255, float32 elsewhere.
    """
    low, high = spec.intensity
    pixels = low + (high - low) * images.pixels.transpose(0, 2, 3, 1)
    pixels = np.round(pixels).astype(np.uint8) if low >= 0 and high <= 255 else pixels.astype(np.float32)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as out:
        np.savez_compressed(
            out, images=pixels[..., 0] if spec.shape[2] == 1 else pixels, labels=np.array(spec.classes)[images.label]
        )
    part.replace(path)
