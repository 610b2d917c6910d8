"""PNG, JPEG and TIFF: only the picture is kept. Text is found and blanked as in DICOM; without text the samples stay exact."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import needles_of, output_name, patient_of
from site_agent.deid.pixels import MOST_BLANKED, PASSES, covered, covered_in_red, thumbnail
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.reader import Needles
from site_agent.deid.recipe import Recipe
from site_agent.deid.streams import strip_jpeg
from site_agent.deid.textfinder import Box, find_text, to_picture, to_pictures

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif"}
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
LARGEST = 200_000_000  # pixels
ORIENTATION = 0x0112
SRGB = ImageCms.createProfile("sRGB")
MODES = frozenset({"1", "L", "RGB", "RGBA", "LA", "P", "I;16", "I;16B", "I", "F"})


def looks_like_picture(head: bytes) -> bool:
    """By magic."""
    return head.startswith(MAGIC)


def clean_picture(data: bytes, source: str, recipe: Recipe, key: SiteKey) -> Cleaned:
    """De-identify one picture. Raises Quarantine with its reason."""
    needles, actions = needles_of(source), Counter[str]()
    image = _open(data)
    form = str(image.format)
    _harvest(image, needles, actions)
    stream = form == "JPEG" and image.mode in ("L", "RGB")
    image, turned = _as_seen(image, actions)
    samples = np.array(image)
    boxes: list[Box] = []
    pictures: list[Any] = []
    if "clean_pixel_data" in recipe.options:
        boxes, before = _blank(samples)
        if boxes:
            pictures = [(f"{len(boxes)} regions blanked", before, thumbnail(_views(samples)[0]))]
            actions["text blanked"] = len(boxes)
    if stream and not boxes and not turned:
        try:
            out, suffix = strip_jpeg(data), ".jpg"  # the code stream itself: no second loss
        except ValueError:
            raise Quarantine("damaged", "JPEG segments") from None
        if not np.array_equal(np.array(Image.open(io.BytesIO(out))), samples):
            raise Quarantine("picture-unusual", "the colours depend on its metadata")
    else:
        out, suffix = _encode(samples, image.mode, "TIFF" if form == "TIFF" else "PNG")
    return Cleaned(
        data=out,
        suffix=suffix,
        name=output_name(source, key),
        kind="picture",
        patient=patient_of(source, key),
        modality="XC",
        shape=tuple(samples.shape),
        actions=actions,
        kept=Counter({"Rows": 1, "Columns": 1, "Mode": 1}),
        changed_pixels=bool(boxes),
        needles=needles,
        pictures=pictures,
        notes={"boxes": len(boxes)} if boxes else {},
    )


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
            if image.width * image.height > LARGEST:
                raise Quarantine("too-large", "picture")
            if getattr(image, "n_frames", 1) > 1 or image.mode not in MODES:
                raise Quarantine("picture-unusual", f"{getattr(image, 'n_frames', 1)} pages, mode {image.mode}")
            if image.mode not in ("I;16", "I;16B", "I", "F") and _bits(image, data) > 8:
                raise Quarantine("picture-unusual", "colours of more than 8 bits, which would be cut")
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError):
        raise Quarantine("too-large", "picture") from None
    except Quarantine:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise Quarantine("damaged", type(error).__name__) from None
    return image


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of a sample in the file; Pillow reads 16-bit colours as 8."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    return data[24] if image.format == "PNG" else 8  # IHDR is the first chunk


def _as_seen(image: Image.Image, actions: Counter[str]) -> tuple[Image.Image, bool]:
    """What a viewer makes of palette, orientation and colour profile, since none of them is written; and whether samples changed."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    changed = False
    if image.getexif().get(ORIENTATION, 1) != 1:
        image, changed = ImageOps.exif_transpose(image), True
        actions["turned as its EXIF says"] += 1
    data = image.info.get("icc_profile")
    if not data:
        return image, changed
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY"}.get(image.mode) != profile.profile.xcolor_space.strip():
            actions["profile of other colours dropped, samples kept"] += (
                1  # a viewer could not apply it; 16 bits stay exact
            )
            return image, changed
        if image.mode == "L" or not _is_srgb(profile):
            image, changed = _converted(image, profile, image.mode), True
            actions["colours converted to sRGB"] += 1
    except (ImageCms.PyCMSError, OSError, ValueError):
        raise Quarantine("picture-unusual", "its colour profile cannot be applied") from None
    return image, changed


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile, mode: str) -> Image.Image:
    out = ImageCms.profileToProfile(image, profile, SRGB, outputMode="RGB" if mode == "L" else mode)
    assert out is not None  # None means in place
    return out.getchannel(0) if mode == "L" else out


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a lattice of colours comes back the same: then the samples, and a JPEG's code stream, can stay."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    back = np.array(_converted(Image.fromarray(lattice), profile, "RGB"))
    return int(np.abs(back.astype(int) - lattice).max()) <= 1


def _harvest(image: Image.Image, needles: Needles, actions: Counter[str]) -> None:
    """Collect every text beside the picture, for the second reader; none of it is written."""
    found = {f"EXIF {tag}": value for tag, value in image.getexif().items()}
    found |= {
        str(k): v
        for k, v in image.info.items()
        if k not in ("dpi", "jfif", "jfif_version", "jfif_unit", "jfif_density")
    }
    if image.format == "TIFF":
        found |= {f"TIFF {tag}": value for tag, value in image.tag_v2.items() if int(tag) > 259}  # type: ignore[attr-defined]
    for name, value in found.items():
        if isinstance(value, bytes):
            needles.add_bytes(value)
        elif isinstance(value, str):
            needles.add_text(value)
        if isinstance(value, bytes | str) and value:
            actions[f"{name.split()[0]} removed"] += 1


def _views(samples: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """What a viewer shows, and what an opacity channel could hide."""
    if samples.dtype == bool:
        return [np.where(samples, 255, 0).astype(np.uint8)]
    if samples.ndim == 3 and samples.shape[2] in (2, 4):
        colour = samples[..., 0] if samples.shape[2] == 2 else samples[..., :3]
        return [to_picture(colour), to_picture(samples[..., -1])]
    return to_pictures(samples)


def _blank(samples: NDArray[Any]) -> tuple[list[Box], NDArray[np.uint8]]:
    """Blank in place until a second look finds nothing readable. Raises ``text-remains`` or ``mostly-text``."""
    first = _views(samples)[0].copy()
    if min(samples.shape[:2]) < 16:
        return [], first
    new = [b for view in _views(samples) for b in find_text(view, radiographic=False)]
    seen: list[Box] = []
    for _ in range(PASSES):
        if not new:
            break
        for x0, y0, x1, y1 in new:
            samples[y0:y1, x0:x1] = 0
        seen += new
        new = [b for view in _views(samples) for b in find_text(view, radiographic=True) if not covered(b, seen)]
    if new:
        raise Quarantine("text-remains", f"{len(new)} boxes after {PASSES} passes")
    mask = np.zeros(samples.shape[:2], bool)
    for x0, y0, x1, y1 in seen:
        mask[y0:y1, x0:x1] = True
    if mask.mean() > MOST_BLANKED:
        raise Quarantine("mostly-text", f"{mask.mean():.0%}")
    return seen, thumbnail(covered_in_red(first, mask))


def _encode(samples: NDArray[Any], mode: str, form: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if mode in ("F", "I") and form == "PNG":
        form = "TIFF"
    image = Image.fromarray(samples)
    if form == "TIFF":
        image.save(buffer, "TIFF", compression="tiff_lzw" if mode not in ("F", "1") else None)
    else:
        image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue(), FORMATS[form]
