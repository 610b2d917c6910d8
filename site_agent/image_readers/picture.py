"""PNG, JPEG and TIFF as the vault holds them: values as stored, opacity dropped, black and white as 0 and 255."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medsynx.image_spec import ImageSpec
from site_agent.image_readers import Picture, finite

FORMATS = ("PNG", "JPEG", "TIFF")


def read(path: Path, spec: ImageSpec) -> Iterator[Picture]:
    """The one picture of a file; 16 bits of grey stay 16 bits."""
    with Image.open(path, formats=FORMATS) as opened:
        mode = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(opened.mode)
        samples = finite(np.asarray(opened.convert(mode) if mode else opened))
    if samples.ndim == 2:
        yield samples[..., None]
    else:
        yield samples[..., : 1 if samples.shape[2] == 2 else 3]
