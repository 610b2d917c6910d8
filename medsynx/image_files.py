"""Synthetic images as one NPZ, in the form that a site's images have."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from medsynx.image_samplers import Images
from medsynx.image_spec import ImageSpec


def to_npz(images: Images, spec: ImageSpec) -> bytes:
    """``images`` (N x height x width, and x 3 for RGB) in the study's intensities, ``labels`` (N) as names of classes.

    Pixels are uint8 where the study's intensities lie in 0-255, float32 elsewhere.
    """
    low, high = spec.intensity
    pixels = low + (high - low) * images.pixels.transpose(0, 2, 3, 1)
    pixels = np.round(pixels).astype(np.uint8) if low >= 0 and high <= 255 else pixels.astype(np.float32)
    pixels = pixels[..., 0] if spec.shape[2] == 1 else pixels
    out = io.BytesIO()
    np.savez_compressed(out, images=pixels, labels=np.array(spec.classes)[images.label])
    return out.getvalue()


def write_images(path: Path, images: Images, spec: ImageSpec) -> None:
    """Write :func:`to_npz`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(to_npz(images, spec))
    part.replace(path)
