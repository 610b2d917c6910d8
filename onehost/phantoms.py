"""Made-up chest radiographs: ribs, lungs, heart and diaphragm drawn by formula, with an opacity in one lung or without. No patient is behind them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FINDINGS = ("clear", "opacity")
PEAK = 4095  #: 12 bits
DARKEST, BRIGHTEST = 60, 3900  #: stored values of a drawing; what is burned in lies outside
Plane = NDArray[np.float64]


def chest(rng: np.random.Generator, finding: str, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """One radiograph, bone bright and air dark, in values from :data:`DARKEST` to :data:`BRIGHTEST`.

    Args:
        rng: decides position, size, build, exposure, and where the opacity lies.
        finding: one of :data:`FINDINGS`.
        shape: rows and columns.
    """
    rows, columns = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    x, y = x - rng.normal(0, 0.03), y - rng.normal(0, 0.03)
    x, y = x / rng.normal(1, 0.04), y / rng.normal(1, 0.03)
    neck, trunk = _blob(x, y, 0, -0.95, 0.26, 0.5), _blob(x, y, 0, 0.62, 0.9, 1.45, sharp=12)
    picture = 0.62 * np.maximum(neck, trunk)
    lungs = np.maximum(_lung(x, y, -0.44, 0.36), _lung(x, y, 0.45, 0.34))
    picture -= rng.normal(0.4, 0.03) * lungs
    picture += rng.normal(0.13, 0.02) * _ribs(x, y, rng.normal(0, 0.04)) * (0.35 + 0.65 * lungs) * trunk
    heart = _blob(x, y, 0.17 + rng.normal(0, 0.02), 0.3, rng.normal(0.33, 0.03), 0.36, sharp=9)
    picture += 0.3 * heart * lungs + 0.16 * np.exp(-((x / 0.13) ** 2)) * trunk
    for side in (-1, 1):  # collar bones
        line = y + 0.74 + 0.16 * (side * x - 0.45)
        picture += 0.12 * np.exp(-((line / 0.045) ** 2)) * _blob(x, y, 0.45 * side, -0.74, 0.36, 0.3)
    if finding == "opacity":  # in the right lung, which a radiograph shows on the left
        away = (x + rng.normal(0.47, 0.03)) ** 2 + 0.8 * (y - rng.normal(0.24, 0.07)) ** 2
        picture += rng.normal(0.46, 0.05) * np.exp(-away / rng.normal(0.27, 0.03) ** 2) * lungs
    picture = picture * rng.normal(1, 0.05) + 0.08 + rng.normal(0, 0.012, shape)
    return np.round(DARKEST + np.clip(picture, 0, 1) * (BRIGHTEST - DARKEST)).astype(np.uint16)


def _blob(x: Plane, y: Plane, at_x: float, at_y: float, wide: float, high: float, sharp: float = 10.0) -> Plane:
    """An ellipse with a soft rim, 1 inside and 0 outside."""
    away = np.sqrt(((x - at_x) / wide) ** 2 + ((y - at_y) / high) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip(sharp * (away - 1), -40, 40))))


def _lung(x: Plane, y: Plane, at: float, wide: float) -> Plane:
    """An ellipse cut off below by the dome of the diaphragm."""
    dome = 0.62 + 0.5 * (x - at) ** 2
    return _blob(x, y, at, 0.02, wide, 0.8) / (1 + np.exp(np.clip(22 * (y - dome), -40, 40)))


def _ribs(x: Plane, y: Plane, phase: float) -> Plane:
    """Bright arcs that fall from the spine to the sides."""
    wave = np.sin(2 * np.pi * ((y - 0.45 * np.abs(x) ** 1.5) / 0.3 + phase))
    return np.asarray(np.clip(wave - 0.2, 0, 1))
