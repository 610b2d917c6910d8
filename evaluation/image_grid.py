"""Synthetic images for the report: one PNG strip a class."""

from __future__ import annotations

import base64
import io

import numpy as np

from medsynx.image_samplers import Images


def strip(images: Images, label: int) -> bytes:
    """The images of one class side by side, as PNG."""
    from PIL import Image

    row = np.concatenate(list(images.pixels[images.label == label]), axis=2).transpose(1, 2, 0)
    pixels = np.round(255 * row).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "png", optimize=True)
    return out.getvalue()


def grid(images: Images, classes: tuple[str, ...]) -> list[dict[str, str]]:
    """``{"class", "png"}`` for each class that has images; ``png`` is a data URI."""
    return [
        {"class": classes[k], "png": "data:image/png;base64," + base64.b64encode(strip(images, k)).decode()}
        for k in np.unique(images.label)
    ]
