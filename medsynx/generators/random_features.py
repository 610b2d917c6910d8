"""Random features of images from a public seed: what two samples must agree on for their distributions to be alike.

Random Fourier features (Rahimi and Recht 2007) of two views, pixels and a small scattering transform (oriented edges at two scales, their modulus
averaged on a coarse grid; after Bruna and Mallat 2013, with derivatives of a Gaussian). Each view is [cos, sin] / sqrt(m) and so has norm 1 for
every image; together, over sqrt(2), again. The same code runs on numpy (at a site) and on torch (where a generator is trained through it).

At a site an image's features must not depend, to the last bit, on where the image stands among others: a neighbouring data set would then move other
patients' features too. A product of matrices does depend on it (a kernel adds up the rows of a block in another order than the next block's), so the
one product that takes many images at once is exact: of whole numbers, whose sums float64 holds without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 7  #: the scattering is averaged on GRID x GRID places
ANGLES = 4
PIXEL_SCALES = (0.12, 0.25, 0.5)  #: times the image's size: widths of the Gaussian kernels on pixels
SCATTER_SCALES = (1.2, 2.5, 5.0)  #: the same on scattering coefficients
PIXEL_GRID = 32  #: larger images enter the pixel view averaged to this size
#: Steps of a unit in the values and in the frequencies of an exact product. The sums stay far below 2**53: of 3 x 32 x 32 pixels below 2**47.
VALUE_STEPS, FREQUENCY_STEPS = 2**18, 2**20


class Scattering:
    """Mean intensity and edge strength by place: (images, channels, height, width) -> (images, width).

    Args:
        shape: height, width, channels.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        height, width, channels = shape
        self.width = channels * (1 + 2 * ANGLES) * GRID**2
        self.matrices: dict[str, Any] = {}
        for scale, (h, w) in enumerate(((height, width), (height // 2, width // 2))):
            rows, columns = filters(h), filters(w)
            self.matrices |= {
                f"blur rows {scale}": rows[0],
                f"slope rows {scale}": rows[1],
                f"blur columns {scale}": columns[0].T.copy(),
                f"slope columns {scale}": columns[1].T.copy(),
                f"pool rows {scale}": average(h, GRID),
                f"pool columns {scale}": average(w, GRID).T.copy(),
            }
        half = average(height, height // 2), average(width, width // 2).T.copy()
        self.matrices |= {"half rows": half[0], "half columns": half[1]}

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of images in 0..1."""
        found: NDArray[np.float32] = _scattering(images, self.matrices, np)
        return found


class RandomFeatures:
    """The features of images of one shape.

    Args:
        shape: height, width, channels.
        features: frequencies of each view.
        seed: public.
    """

    def __init__(self, shape: tuple[int, int, int], features: int, seed: int) -> None:
        height, width, channels = shape
        rng = np.random.default_rng(seed)
        small = min(height, PIXEL_GRID), min(width, PIXEL_GRID)
        pixels, scattering = small[0] * small[1] * channels, Scattering(shape)
        self.width = 4 * features  #: features of an image
        self.matrices: dict[str, Any] = scattering.matrices | {
            "small rows": average(height, small[0]),
            "small columns": average(width, small[1]).T.copy(),
            "pixels": _frequencies(rng, pixels, features, math.sqrt(pixels), PIXEL_SCALES),
            "scatter": _frequencies(rng, scattering.width, features, math.sqrt(channels), SCATTER_SCALES),
        }
        self.whole = {v: np.rint(self.matrices[v].astype(np.float64) * FREQUENCY_STEPS) for v in ("pixels", "scatter")}

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(images, channels, height, width) in 0..1 -> (images, width), rows of norm 1."""
        found: NDArray[np.float32] = _features(images, self.matrices, np, self._exact)
        return found

    def _exact(self, values: NDArray[np.float32], view: str) -> NDArray[np.float32]:
        """Values times the view's frequencies, the same bits wherever a row stands and whatever adds up."""
        whole = np.rint(values * np.float32(VALUE_STEPS)).astype(np.float64) @ self.whole[view]
        return (whole / (VALUE_STEPS * FREQUENCY_STEPS)).astype(np.float32)

    def for_torch(self, device: Any) -> Any:
        """The same function on torch tensors of a device, differentiable."""
        import torch

        matrices = {n: torch.from_numpy(a).to(device) for n, a in self.matrices.items()}
        return lambda images: _features(images, matrices, torch, lambda values, view: values @ matrices[view])


def _features(images: Any, m: dict[str, Any], xp: ModuleType, product: Callable[[Any, str], Any]) -> Any:
    """``xp``: numpy or torch; both spell everything here alike. ``product``: of values and a view's frequencies."""
    pixels = (m["small rows"] @ images @ m["small columns"]).reshape(len(images), -1)
    views = [product(pixels, "pixels"), product(_scattering(images, m, xp), "scatter")]
    parts = [f(view) for view in views for f in (xp.cos, xp.sin)]
    return xp.concatenate(parts, 1) / math.sqrt(2 * m["pixels"].shape[1])


def _scattering(images: Any, m: dict[str, Any], xp: ModuleType) -> Any:
    count = len(images)
    out = [(m["pool rows 0"] @ images @ m["pool columns 0"]).reshape(count, -1)]
    for scale in range(2):
        if scale:
            images = m["half rows"] @ images @ m["half columns"]
        across = m[f"blur rows {scale}"] @ images @ m[f"slope columns {scale}"]
        down = m[f"slope rows {scale}"] @ images @ m[f"blur columns {scale}"]
        for k in range(ANGLES):
            c, s = math.cos(math.pi * k / ANGLES), math.sin(math.pi * k / ANGLES)
            edge = ((c * across + s * down) ** 2 / _kernel_sum(k) ** 2 + 1e-6) ** 0.5
            out.append(4 * (m[f"pool rows {scale}"] @ edge @ m[f"pool columns {scale}"]).reshape(count, -1))
    return xp.concatenate(out, 1)


def _kernel_sum(angle: int) -> float:
    """Sum of the absolute weights of the 5 x 5 edge filter at this angle, so that every angle answers to an edge alike."""
    r = np.arange(-2, 3)
    turned = r * math.cos(math.pi * angle / ANGLES) + r[:, None] * math.sin(math.pi * angle / ANGLES)
    return float(np.abs(turned * np.exp(-(r**2 + r[:, None] ** 2) / 2)).sum())


def _frequencies(
    rng: np.random.Generator, size: int, features: int, norm: float, scales: tuple[float, ...]
) -> NDArray[np.float32]:
    """Frequencies of Gaussian kernels of several widths, in turn; shape (size, features)."""
    widths = norm * np.resize(np.array(scales, np.float32), features)
    return (rng.standard_normal((size, features), np.float32) / widths).astype(np.float32)


def average(size: int, places: int) -> NDArray[np.float32]:
    """Matrix (places, size) that averages a line of pixels over equal stretches, pixels on a border shared."""
    edges = np.linspace(0, size, places + 1)
    pixel = np.arange(size)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    out = np.maximum(inside, 0)
    return (out / out.sum(axis=1, keepdims=True)).astype(np.float32)


def filters(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices (size, size) of a 5-tap Gaussian and of its derivative along a line whose ends go on as they are."""
    r = np.arange(-2, 3)
    out = []
    for taps in (np.exp(-(r**2) / 2), r * np.exp(-(r**2) / 2)):
        matrix = np.zeros((size, size))
        for offset, tap in zip(r, taps, strict=True):
            np.add.at(matrix, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), tap)
        out.append(matrix.astype(np.float32))
    return out[0], out[1]
