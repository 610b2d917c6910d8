"""Finds burned-in text in one grey or colour picture: rapidocr's detector (DBNet, PP-OCRv4, ONNX models inside the wheel), on three views.

The plain view finds text on a plain ground; the locally normalised inverse finds near-white text on white; the turned one finds lines along the
sides. In radiographic pictures anatomy looks like writing to the detector, so there a box counts only when the recogniser reads something in it;
elsewhere one readable box is enough to blank them all.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # x0, y0, x1, y1: columns and rows, end exclusive
Picture = NDArray[np.uint8]
TILE = 768  # pixels a side of what the network sees: beyond it, its time grows faster than the area
OVERLAP = 96  # of two tiles: more than a label's height, so that each letter is whole in one of them
MAGNIFICATION = 2.0
LEAST_EDGE = 8  # of 255 grey values between neighbours: fainter letters cannot be read
DETECTION = 0.3  # the library's default of 0.5 misses faint banners
RECOGNITION = 0.5
SURE = 0.8  # for letters larger than a label's, where bones and vessels can look like one or two of them
UPRIGHT = 1.5  # a box so much taller than wide holds a line turned by 90 degrees
NAME = "rapidocr-onnxruntime 1.4.4"


@cache
def _engine() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    # the scale is ours to choose: by default every picture is enlarged to 736 pixels on its shorter side
    return RapidOCR(det_box_thresh=DETECTION, det_limit_side_len=32, intra_op_num_threads=1, inter_op_num_threads=1)


@cache
def model_digest() -> str:
    """SHA-256 over the models in use, for reports."""
    import rapidocr_onnxruntime

    h = hashlib.sha256()
    for file in sorted(Path(str(rapidocr_onnxruntime.__file__)).parent.glob("models/*.onnx")):
        h.update(file.read_bytes())
    return h.hexdigest()[:16]


def to_picture(frame: NDArray[Any]) -> Picture:
    """Stretch samples of any type to 8 bits, shape (rows, columns) or (rows, columns, 3). The tails of 0.1 % are clipped."""
    if frame.dtype == np.uint8 and frame.ndim == 3:
        return frame[..., :3]
    values = np.nan_to_num(frame.astype(np.float32))
    sample = values[:: max(1, values.shape[0] // 512), :: max(1, values.shape[1] // 512)]
    low, high = np.percentile(sample, [0.1, 99.9])
    if high - low < 1e-6:
        low, high = float(values.min()), float(values.max())
    return (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def find_text(picture: Picture, *, radiographic: bool) -> list[Box]:
    """Boxes of text, padded by a quarter of their height. ``radiographic``: a box must be readable to count."""
    height, width = picture.shape[:2]
    grey: Picture = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    colour: Picture = np.ascontiguousarray(np.stack([grey] * 3, -1) if picture.ndim == 2 else picture[..., ::-1])
    inverse = _normalised_inverse(grey)
    boxes: list[Box] = []
    for (left, top, right, bottom), scale in looks(height, width):
        here = np.s_[top:bottom, left:right]
        if _flat(colour[here]):
            continue
        found = _detect(colour[here], scale) + _detect(inverse[here], scale) + _detect_turned(colour[here], scale)
        for x0, y0, x1, y1 in found:
            pad = max(2.0, min(x1 - x0, y1 - y0) * 0.25)
            box = (
                max(0, int(left + x0 - pad)),
                max(0, int(top + y0 - pad)),
                min(width, int(left + x1 + pad) + 1),
                min(height, int(top + y1 + pad) + 1),
            )
            if box[2] > box[0] and box[3] > box[1] and not any(_inside(box, b) for b in boxes):
                boxes.append(box)
    short = min(height, width)
    if radiographic:
        return [b for b in boxes if _readable(grey, b, large=_line(b) > max(40, 0.12 * short))]
    boxes = [b for b in boxes if _line(b) <= min(0.2 * short, max(60, 0.12 * short)) or _readable(grey, b)]
    # where one box can be read, all are blanked on suspicion: a name across other text cannot be read itself
    return boxes if any(_readable(grey, b) for b in boxes) else []


def looks(height: int, width: int) -> Iterator[tuple[Box, float]]:
    """Windows of a picture with their magnification: small pictures are enlarged, large ones are read in tiles without losing a pixel.

    A picture of more than two tiles a side is also looked at as a whole, for letters that no tile holds.
    """
    scale = min(MAGNIFICATION, TILE / math.sqrt(height * width))
    if scale >= 1 or max(height, width) > 2 * TILE:
        yield (0, 0, width, height), scale
    if scale < 1:
        for top, bottom in _cuts(height):
            for left, right in _cuts(width):
                yield (left, top, right, bottom), 1.0


def _cuts(length: int) -> list[tuple[int, int]]:
    """Equal pieces of at most a tile, each overlapping the next."""
    pieces = max(1, math.ceil((length - OVERLAP) / (TILE - OVERLAP)))
    size = math.ceil((length + (pieces - 1) * OVERLAP) / pieces)
    starts = [min(k * (size - OVERLAP), length - size) for k in range(pieces)]
    return [(s, s + size) for s in starts]


def _flat(view: Picture) -> bool:
    """Whether no two neighbouring pixels differ enough for a letter's edge."""
    gradient = cv2.morphologyEx(view, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return int(gradient.max()) < LEAST_EDGE


def _detect(view: Picture, scale: float) -> list[tuple[float, float, float, float]]:
    """Boxes (x0, y0, x1, y1) of lines that run from left to right."""
    height, width = view.shape[:2]
    size = (max(16, int(width * scale)), max(16, int(height * scale)))
    scaled = cv2.resize(view, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    found, _ = _engine()(scaled, use_det=True, use_cls=False, use_rec=False)
    quads = found if found is not None else []
    sx, sy = size[0] / width, size[1] / height
    return [
        (min(p[0] for p in q) / sx, min(p[1] for p in q) / sy, max(p[0] for p in q) / sx, max(p[1] for p in q) / sy)
        for q in quads
    ]


def _detect_turned(view: Picture, scale: float) -> list[tuple[float, float, float, float]]:
    """Boxes of lines that run from top to bottom or back: the detector misses them, so the picture is turned."""
    width = view.shape[1]
    turned = _detect(
        np.ascontiguousarray(np.rot90(view)), scale
    )  # column x of the picture is row width - x of the turned one
    return [(width - y1, x0, width - y0, x1) for x0, y0, x1, y1 in turned]


def _normalised_inverse(grey: Picture) -> Picture:
    """Grey values relative to their neighbourhood's mean and spread, inverted, three channels."""
    values = grey.astype(np.float32)
    difference = values - cv2.GaussianBlur(values, (0, 0), 15)
    spread = np.sqrt(cv2.GaussianBlur(difference * difference, (0, 0), 25)) + 4
    inverse = 255 - np.clip(difference / spread * 40 + 128, 0, 255).astype(np.uint8)
    return np.stack([inverse] * 3, -1)


def read_box(grey: Picture, box: Box) -> tuple[str, float]:
    """The recogniser's best reading of a box - bright on dark, dark on bright, and turned either way when upright - and its score."""
    x0, y0, x1, y1 = box
    crop = grey[y0:y1, x0:x1].astype(np.float32)
    low, high = np.percentile(crop, [1, 99])
    crop8 = np.clip((crop - low) / max(4.0, high - low) * 255, 0, 255).astype(np.uint8)
    turns = (1, 3) if y1 - y0 > UPRIGHT * (x1 - x0) else (0,)
    best, score = "", 0.0
    for view in (v for turn in turns for v in (np.rot90(crop8, turn), 255 - np.rot90(crop8, turn))):
        result, _ = _engine()(np.stack([view] * 3, -1), use_det=False, use_cls=False, use_rec=True)
        for text, value in result or []:
            if float(value) > score:
                best, score = str(text), float(value)
    return best, score


def _line(box: Box) -> int:
    """The height of the letters: the shorter side of a box, whichever way the text runs."""
    return min(box[2] - box[0], box[3] - box[1])


def _readable(grey: Picture, box: Box, *, large: bool = False) -> bool:
    text, score = read_box(grey, box)
    return score >= (SURE if large else RECOGNITION) and len(re.sub(r"[^A-Za-z0-9]", "", text)) >= (3 if large else 2)


def _inside(a: Box, b: Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]
