"""Finds burned-in text in one grey or colour picture: rapidocr's detector (DBNet, PP-OCRv4, ONNX models inside the wheel), on three views.

The plain view finds text on a plain ground; the locally normalised inverse finds near-white text on white; the turned one finds lines along the
sides. In radiographic pictures anatomy looks like writing to the detector, so there a box counts only when the recogniser reads something in it;
elsewhere one readable box is enough to blank them all.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # x0, y0, x1, y1: columns and rows, end exclusive
Picture = NDArray[np.uint8]
Quad = NDArray[np.float64]  # 4 corners, columns x and y
TAILS = (0.1, 1.0, 5.0)  # percent clipped on either side
NARROWER = 4  # a contrast is looked at when its range is so many times smaller than the one before
TILE = 768  # pixels a side of what the network sees: beyond it, its time grows faster than the area
OVERLAP = 96  # of two tiles: more than a label's height, so that each letter is whole in one of them
MAGNIFICATION = 2.0
LEAST_EDGE = 8  # of 255 grey values between neighbours: fainter letters cannot be read
DETECTION = 0.3  # the library's default of 0.5 misses faint banners
RECOGNITION = 0.5
SLANTED = 8.0  # degrees; below, a box cut from the picture reads as well
SURE = 0.8  # for letters larger than a label's, where bones and vessels can look like one or two of them
UPRIGHT = 1.5  # a box so much taller than wide holds a line turned by 90 degrees
NAME = "rapidocr-onnxruntime 1.4.4"


@dataclass(frozen=True)
class Line:
    """One line of text: its corners, and the rows and columns of the picture it is in."""

    quad: Quad
    height: int
    width: int

    @property
    def letters(self) -> float:
        """Height of the letters in pixels: the shorter side, whichever way the text runs."""
        return float(min(np.linalg.norm(self.quad[1] - self.quad[0]), np.linalg.norm(self.quad[2] - self.quad[1])))

    @property
    def slanted(self) -> bool:
        """Whether an upright box would hold much beside the text."""
        angle = cv2.minAreaRect(self.quad.astype(np.float32))[2] % 90
        return min(angle, 90 - angle) >= SLANTED

    @property
    def box(self) -> Box:
        """The upright box around it, padded by a quarter of the letters' height."""
        return self._around(self.quad)

    @property
    def boxes(self) -> list[Box]:
        """What is blanked: the box; along a slanted line, a stair of smaller ones."""
        if not self.slanted:
            return [self.box]
        a, b, c, d = self.quad
        if np.linalg.norm(c - b) > np.linalg.norm(b - a):  # from one short side to the other
            a, b, c, d = d, a, b, c
        steps = np.linspace(0, 1, 1 + math.ceil(2 * np.linalg.norm(b - a) / max(4.0, self.letters)))
        cuts = [np.stack([a + (b - a) * t, d + (c - d) * t]) for t in steps]
        return [self._around(np.concatenate(pair)) for pair in itertools.pairwise(cuts)]

    def _around(self, points: NDArray[np.float64]) -> Box:
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        pad = max(2.0, self.letters * 0.25)
        left, top = max(0, int(x0 - pad)), max(0, int(y0 - pad))
        return left, top, min(self.width, int(x1 + pad) + 1), min(self.height, int(y1 + pad) + 1)

    def straight(self, grey: Picture) -> Picture:
        """The box cut out; of a slanted line, its own rectangle with a rim, laid level."""
        if not self.slanted:
            x0, y0, x1, y1 = self.box
            return grey[y0:y1, x0:x1]
        (cx, cy), (w, h), angle = cv2.minAreaRect(self.quad.astype(np.float32))
        rim = 0.3 * min(w, h)
        w, h = w + rim, h + rim
        corners = cv2.boxPoints(((cx, cy), (w, h), angle))
        size = (max(8, round(w)), max(8, round(h)))
        target = np.array([(0, size[1]), (0, 0), (size[0], 0), size], np.float32)
        return cv2.warpPerspective(grey, cv2.getPerspectiveTransform(corners, target), size).astype(np.uint8)


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


def to_picture(frame: NDArray[Any], tail: float = 0.1) -> Picture:
    """Stretch samples of any type to 8 bits, shape (rows, columns) or (rows, columns, 3). Tails of so many percent are clipped."""
    if frame.dtype == np.uint8 and frame.ndim == 3:
        return frame[..., :3]
    values = np.nan_to_num(frame.astype(np.float32))
    low, high = _range(values, tail)
    if high - low < 1e-6:
        low, high = float(values.min()), float(values.max())
    return (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def to_pictures(frame: NDArray[Any]) -> list[Picture]:
    """One picture a contrast: a few very bright pixels would leave nothing of what is written beside them."""
    if frame.ndim == 3 or frame.dtype == np.uint8:
        return [to_picture(frame)]
    spans = [np.subtract(*_range(frame, tail)[::-1]) for tail in TAILS]
    kept = [TAILS[0]] + [t for k, t in enumerate(TAILS) if k and 0 < spans[k] < spans[k - 1] / NARROWER]
    return [to_picture(frame, tail) for tail in kept]


def _range(values: NDArray[Any], tail: float) -> tuple[float, float]:
    sample = values[:: max(1, values.shape[0] // 512), :: max(1, values.shape[1] // 512)]
    low, high = np.percentile(sample, [tail, 100 - tail])
    return float(low), float(high)


def find_text(picture: Picture, *, radiographic: bool) -> list[Box]:
    """Boxes of text, padded by a quarter of their height. ``radiographic``: a box must be readable to count."""
    height, width = picture.shape[:2]
    grey: Picture = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    colour: Picture = np.ascontiguousarray(np.stack([grey] * 3, -1) if picture.ndim == 2 else picture[..., ::-1])
    inverse = _normalised_inverse(grey)
    lines: list[Line] = []
    for (left, top, right, bottom), scale in looks(height, width):
        here = np.s_[top:bottom, left:right]
        if _flat(colour[here]):
            continue
        found = _detect(colour[here], scale) + _detect(inverse[here], scale) + _detect_turned(colour[here], scale)
        for quad in found:
            line = Line(quad + np.array([left, top]), height, width)
            x0, y0, x1, y1 = line.box
            if x1 > x0 and y1 > y0 and not any(_inside(line.box, other.box) for other in lines if not other.slanted):
                lines.append(line)
    short = min(height, width)
    if radiographic:
        lines = [n for n in lines if _readable(grey, n, large=n.letters > max(40, 0.12 * short))]
        return [b for n in lines for b in n.boxes]
    lines = [n for n in lines if n.letters <= min(0.2 * short, max(60, 0.12 * short)) or _readable(grey, n)]
    # where one box can be read, all are blanked on suspicion: a name across other text cannot be read itself.
    # Two digits are no reason: a checkerboard reads as 88.
    return [b for n in lines for b in n.boxes] if any(_readable(grey, n, lone_number=False) for n in lines) else []


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


def _detect(view: Picture, scale: float) -> list[Quad]:
    """Corners of lines that run more or less from left to right, or are slanted, clockwise from the letters' upper left."""
    height, width = view.shape[:2]
    size = (max(16, int(width * scale)), max(16, int(height * scale)))
    scaled = cv2.resize(view, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    found, _ = _engine()(scaled, use_det=True, use_cls=False, use_rec=False)
    quads = found if found is not None else []
    return [np.asarray(q, np.float64) / (size[0] / width, size[1] / height) for q in quads]


def _detect_turned(view: Picture, scale: float) -> list[Quad]:
    """Lines that run from top to bottom or back: the detector misses them, so the picture is turned."""
    width = view.shape[1]
    # column x of the picture is row width - x of the turned one
    turned = _detect(np.ascontiguousarray(np.rot90(view)), scale)
    return [np.stack([width - q[:, 1], q[:, 0]], -1) for q in turned]


def _normalised_inverse(grey: Picture) -> Picture:
    """Grey values relative to their neighbourhood's mean and spread, inverted, three channels."""
    values = grey.astype(np.float32)
    difference = values - cv2.GaussianBlur(values, (0, 0), 15)
    spread = np.sqrt(cv2.GaussianBlur(difference * difference, (0, 0), 25)) + 4
    inverse = 255 - np.clip(difference / spread * 40 + 128, 0, 255).astype(np.uint8)
    return np.stack([inverse] * 3, -1)


def readings(grey: Picture, line: Line) -> Iterator[tuple[str, float]]:
    """What the recogniser reads, with its score: bright on dark and dark on bright, from either end, and slanted lines put straight."""
    crop = line.straight(grey).astype(np.float32)
    low, high = np.percentile(crop, [1, 99])
    crop8 = np.clip((crop - low) / max(4.0, high - low) * 255, 0, 255).astype(np.uint8)
    height, width = crop8.shape
    turns = (1, 3) if height > UPRIGHT * width else (0, 2)
    for turn in turns:
        for view in (np.rot90(crop8, turn), 255 - np.rot90(crop8, turn)):
            result, _ = _engine()(np.stack([view] * 3, -1), use_det=False, use_cls=False, use_rec=True)
            yield from ((str(text), float(value)) for text, value in result or [])


def _readable(grey: Picture, line: Line, *, large: bool = False, lone_number: bool = True) -> bool:
    """``lone_number``: whether two digits and nothing else count."""
    sure, least = (SURE, 3) if large or line.slanted else (RECOGNITION, 2)
    found = (t for t, score in readings(grey, line) if score >= sure and _letters(t) >= least)
    return any(lone_number or len(t) > 2 or not t.isdigit() for t in found)


def _letters(text: str) -> float:
    """Letters and digits; two ideographs are a name, and one alone is what the recogniser makes of anatomy."""
    return sum(c.isalnum() * (1.5 if unicodedata.category(c) == "Lo" else 1) for c in text)


def _inside(a: Box, b: Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]
