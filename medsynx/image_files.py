"""Synthetic images as files: one NPZ in the form that a site's images have, or a ZIP of PNG, DICOM or NIfTI files.

A grey image is stored in whole numbers from the study's black to its white: 0-255 (8 bits) where the study's intensities are 0 to 255, else
0-65535 (16 bits) with the slope and intercept that lead back to them. A colour image has 8 bits a channel, 0 black and 255 white.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynx.bundle import Bundle
from medsynx.errors import MedsynxError
from medsynx.image_samplers import Images, draw_chunks, draw_images
from medsynx.image_spec import ImageSpec
from medsynx.provenance import Provenance
from medsynx.streams import Tail

ARCHIVES = ("png", "dicom", "nifti")  #: formats of :func:`archive`


@dataclass(frozen=True)
class Scale:
    """From stored whole numbers to the study's intensities: ``slope * stored + intercept``. ``slope`` is 1 where they are the same."""

    peak: int
    slope: float
    intercept: float

    @classmethod
    def of(cls, spec: ImageSpec) -> Scale:
        """The scale of a study's images."""
        low, high = spec.intensity
        peak = 255 if spec.shape[2] == 3 or (low, high) == (0, 255) else 65535
        return cls(peak, (high - low) / peak, low)

    @property
    def plain(self) -> bool:
        """Whether stored numbers are intensities."""
        return (self.slope, self.intercept) == (1, 0)

    def stored(self, images: Images) -> NDArray[Any]:
        """uint8 or uint16, (images, height, width), and x 3 for RGB."""
        whole = np.round(images.pixels.transpose(0, 2, 3, 1) * np.float32(self.peak))
        whole = whole.astype(np.uint8 if self.peak == 255 else np.uint16)
        return whole[..., 0] if whole.shape[3] == 1 else whole


@dataclass(frozen=True)
class Item:
    """One image of a draw.

    Attributes:
        pixels: as stored, (height, width), and x 3 for RGB.
        number: from 1, in the order of the draw.
        label: name of the class.
        position: of the class in the study, from 0.
    """

    pixels: NDArray[Any]
    number: int
    label: str
    position: int


#: files of one image, by suffix, the image itself first
Encoder = Callable[[Item, Scale, Provenance], dict[str, bytes]]


def to_npz(bundle: Bundle, images: int, seed: int | None, classes: tuple[str, ...] = ()) -> bytes:
    """``images`` (N x height x width, and x 3 for RGB) in the study's intensities, ``labels`` (N) as names of classes, ``provenance`` (JSON).

    Pixels are uint8 where the study's intensities are 0 to 255, float32 elsewhere. Raises what :func:`medsynx.image_samplers.draw_images` raises.
    """
    spec, about = image_spec(bundle), Provenance.of(bundle, images, seed, classes)
    made = draw_images(bundle, images, seed, classes)
    scale, (low, high) = Scale.of(spec), spec.intensity
    if scale.plain:
        pixels = scale.stored(made)
    else:
        pixels = low + (high - low) * made.pixels.transpose(0, 2, 3, 1)
        pixels = pixels[..., 0] if spec.shape[2] == 1 else pixels
    out = io.BytesIO()
    labels = np.array(spec.classes)[made.label]
    np.savez_compressed(out, images=pixels, labels=labels, provenance=np.array(about.json().decode()))
    return out.getvalue()


def archive(bundle: Bundle, images: int, seed: int | None, form: str, classes: tuple[str, ...] = ()) -> Iterator[bytes]:
    """A ZIP, in pieces as the images are drawn: a folder a class, ``labels.csv`` (file, label) and ``provenance.json``.

    The same bundle, number, seed and classes give the same bytes.

    Args:
        form: one of :data:`ARCHIVES`.
        classes: of these alone; of all when empty.

    Raises:
        MedsynxError: before the first piece; ``rows-invalid``, ``condition-invalid``, ``not-images``, ``install-incomplete``, ``bundle-unreadable``.
    """
    spec, about = image_spec(bundle), Provenance.of(bundle, images, seed, classes)
    try:
        encode: Encoder = import_module(f"medsynx.image_formats.{form}").encode
    except ModuleNotFoundError as missing:
        hint = "Install the extra `server` or `deid`, for example `pip install medsynx[server]`."
        raise MedsynxError("install-incomplete", f"the format {form} needs {missing.name}", hint=hint) from None
    return _zipped(draw_chunks(bundle, images, seed, classes), spec, about, encode, len(str(images)))


def image_spec(bundle: Bundle) -> ImageSpec:
    """The images of a bundle. Raises ``not-images`` for one that makes rows."""
    if bundle.study.image is None:
        raise MedsynxError("not-images", "this generator makes rows")
    return bundle.study.image


def _zipped(
    chunks: Iterator[Images], spec: ImageSpec, about: Provenance, encode: Encoder, digits: int
) -> Iterator[bytes]:
    tail, scale, number = Tail(), Scale.of(spec), 0
    listed = io.StringIO()
    table = csv.writer(listed, lineterminator="\n")
    table.writerow(["file", "label"])
    with zipfile.ZipFile(tail, "w") as out:
        _add(out, "provenance.json", about.json())
        for chunk in chunks:
            for pixels, position in zip(scale.stored(chunk), chunk.label.tolist(), strict=True):
                number += 1
                item = Item(pixels, number, spec.classes[position], position)
                stem = f"{folder_name(item)}/{number:0{digits}d}"
                files = encode(item, scale, about)
                for suffix, content in files.items():
                    _add(out, stem + suffix, content)
                table.writerow([stem + next(iter(files)), item.label])
            yield tail.take()
        _add(out, "labels.csv", listed.getvalue().encode())
    yield tail.take()


def folder_name(item: Item) -> str:
    """A name for the folder of a class on any file system; a class may be called anything."""
    return f"{item.position:02d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', item.label).strip('-')[:40] or 'class'}"


def _add(out: zipfile.ZipFile, name: str, content: bytes) -> None:
    """With ZIP's first day as date, so that the same images are the same archive."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    out.writestr(entry, content)
