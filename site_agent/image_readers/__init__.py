"""One file -> its images, one at a time, as float32 of height x width x channels in the modality's units. NaN is what no detector saw (padding).

A reader sees one file and the public study, nothing else, and keeps one image of full size in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynx.image_spec import ImageSpec

Picture = NDArray[np.float32]
Reader = Callable[[Path, ImageSpec], Iterator[Picture]]
KINDS = ("dicom", "nifti", "picture")  #: kinds of the catalogue that hold images
SMALLEST = 8  #: pixels of a side
NOT_FINITE = "pixels that are not finite numbers"  #: reason to leave an image out
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  #: Rec. ITU-R BT.601, as JPEG and Pillow weigh colours


class LeftOutError(Exception):
    """A file that is not trained on. ``reason`` is one of few sentences, so that files can be counted by it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def read(path: Path, kind: str, spec: ImageSpec) -> Iterator[Picture]:
    """The images of a file with as many channels as the study asks for: colour becomes luma, grey three equal channels.

    Args:
        kind: dicom, nifti or picture, as the catalogue says.

    Raises:
        LeftOutError: whatever is wrong with the file; it is no other file's trouble.
    """
    reader: Reader = import_module(f"site_agent.image_readers.{kind}").read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders quote values
            for picture in reader(path, spec):
                yield _fitting(picture, spec)
    except LeftOutError:
        raise
    except MemoryError:
        raise LeftOutError("too large for memory") from None
    except Exception:  # decoders raise what they like; none of it is a picture
        raise LeftOutError("cannot be decoded") from None


def finite(picture: NDArray[Any]) -> Picture:
    """As float32. Raises LeftOutError for pixels that are no finite real numbers."""
    if picture.dtype.kind not in "buif":
        raise LeftOutError("pixels that are no real numbers")
    out = picture.astype(np.float32)
    if not np.isfinite(out).all():
        raise LeftOutError(NOT_FINITE)
    return out


def _fitting(picture: Picture, spec: ImageSpec) -> Picture:
    if min(picture.shape[:2]) < SMALLEST:
        raise LeftOutError(f"smaller than {SMALLEST} x {SMALLEST} pixels")
    if not np.isfinite(picture).any():
        raise LeftOutError("nothing but padding")
    have, want = picture.shape[2], spec.shape[2]
    if have == want:
        return picture
    return (picture @ LUMA)[..., None] if want == 1 else np.repeat(picture, want, axis=2)
