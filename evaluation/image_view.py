"""A public view of images, made from synthetic ones alone: where an image lies among them, and how near the nearest of them is.

The coordinator sends it along; a site looks at its patients through it. It depends on noised sums only, as the generator does, so it may be fitted to
the synthetic images: their principal directions in the fixed random space of :mod:`evaluation.image_space`, in units of their largest
standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsynx.generators.base import Arrays
from medsynx.image_samplers import Images

FEATURES = 896  #: of the random space
DRAWN = 3000  #: synthetic images that a patient is compared with, at most
COORDINATES = 64
MOMENTS = 8  #: coordinates whose means and covariances are measured: few, since each entry takes noise
INSIDE = 0.8  #: share of the synthetic images that the ball leaves as they are; see :meth:`View.moments`
MEAN = 0.5  #: weight of the means beside the covariances: they are measured well anyway
DRAWS = 200  #: of the known noise
UPPER = np.triu_indices(MOMENTS)
WIDTH = MOMENTS + len(UPPER[0])  #: numbers that :meth:`View.moments` gives
Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]  #: mean and covariance
ARRAYS = ("centre", "directions", "drawn", "scale", "control")


def of(synthetic: Images) -> Arrays:
    """The arrays of a view, float32.

    ``centre`` (FEATURES,) and ``directions`` (FEATURES, COORDINATES) lead to coordinates; ``drawn`` (images, COORDINATES) are the synthetic
    images'; ``scale`` holds the ball's radius and the median distance of two synthetic images; ``control`` (WIDTH,) is the mean of
    :meth:`View.moments` over images that show their class's mean.
    """
    from evaluation.image_space import RandomSpace, mean_only

    some = Images(synthetic.pixels[:DRAWN], synthetic.label[:DRAWN])
    found = RandomSpace(some.pixels.shape[1])(some.pixels)
    centre = found.mean(axis=0)
    _, spread, directions = np.linalg.svd(found - centre, full_matrices=False)
    kept = np.zeros((COORDINATES, found.shape[1]))
    kept[: len(directions)] = directions[:COORDINATES]
    drawn = (found - centre) @ kept.T / (unit := max(spread[0] / np.sqrt(len(found)), 1e-6))
    half = len(drawn) // 2
    apart = np.median(np.linalg.norm(drawn[:half] - drawn[half : 2 * half], axis=1)) if half else 1.0
    radius = np.quantile(np.linalg.norm(drawn[:, :MOMENTS], axis=1), INSIDE)
    arrays = {
        "centre": centre,
        "directions": kept.T / unit,
        "drawn": drawn,
        "scale": np.maximum([radius, apart], 1e-6),
        "control": np.zeros(WIDTH),
    }
    view = View(arrays, some.pixels.shape[1])
    control = mean_only(some).pixels[:500]
    arrays["control"] = view.moments(view.coordinates(control)).mean(axis=0)
    return {name: a.astype(np.float32) for name, a in arrays.items()}


class View:
    """Looks at images.

    Args:
        arrays: of :func:`of`.
        channels: of the images.

    Raises:
        ValueError: for arrays that are no view.
    """

    def __init__(self, arrays: Arrays, channels: int) -> None:
        if not set(ARRAYS) <= set(arrays):
            raise ValueError("the view does not fit the study")
        self.channels = channels
        self.centre, self.directions, self.drawn, scale, self.control = (np.asarray(arrays[n], float) for n in ARRAYS)
        fits = (
            self.centre.shape == (FEATURES,)
            and self.directions.shape == (FEATURES, COORDINATES)
            and self.drawn.ndim == 2
            and 1 <= len(self.drawn) <= DRAWN
            and self.drawn.shape[1] == COORDINATES
            and scale.shape == (2,)
            and (scale > 0).all()
            and self.control.shape == (WIDTH,)
        )
        held = (self.centre, self.directions, self.drawn, scale, self.control)
        if not fits or not all(np.isfinite(a).all() for a in held):
            raise ValueError("the view does not fit the study")
        self.radius, self.apart = float(scale[0]), float(scale[1])

    @cached_property
    def space(self) -> Any:
        """The random space; torch is imported when an image is looked at."""
        from evaluation.image_space import RandomSpace

        return RandomSpace(self.channels)

    def coordinates(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """(images, channels, height, width) -> (images, COORDINATES)."""
        with np.errstate(all="ignore"):  # the view comes from outside and may overflow
            found: NDArray[np.float64] = (self.space(images) - self.centre) @ self.directions
        return found

    def distance(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """To the nearest synthetic image; 1 is the median distance of two synthetic ones. (images, COORDINATES) -> (images,)."""
        with np.errstate(all="ignore"):
            squared = (
                (coordinates**2).sum(axis=1)[:, None] + (self.drawn**2).sum(axis=1) - 2 * coordinates @ self.drawn.T
            )
            found: NDArray[np.float64] = np.sqrt(np.maximum(squared.min(axis=1), 0)) / self.apart
        return found

    def nearest(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """:meth:`distance` of images, a few at a time."""
        parts = [self.distance(self.coordinates(images[i : i + 250])) for i in range(0, len(images), 250)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def moments(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means and products of the first coordinates, drawn into the unit ball: (images, COORDINATES) -> (images, WIDTH), of norm 1 at most.

        A product and its mirror image enter once, times the square root of 2: the norm of all is the squared norm of the coordinates.
        """
        with np.errstate(all="ignore"):
            inside = np.nan_to_num(coordinates[:, :MOMENTS] / self.radius, nan=0.0, posinf=0.0, neginf=0.0)
            inside = np.nan_to_num(inside / np.maximum(1.0, np.linalg.norm(inside, axis=1, keepdims=True)), nan=0.0)
        products = inside[:, UPPER[0]] * inside[:, UPPER[1]] * np.where(UPPER[0] == UPPER[1], 1.0, np.sqrt(2))
        return np.hstack([MEAN * inside, products]) / np.sqrt(1 + MEAN**2)

    def gaussian(self, mean_moments: NDArray[np.float64]) -> Gaussian:
        """Mean and covariance, in coordinates, of which these are the mean moments."""
        values = mean_moments * np.sqrt(1 + MEAN**2)
        mean, products = values[:MOMENTS] / MEAN, np.zeros((MOMENTS, MOMENTS))
        products[UPPER] = values[MOMENTS:] / np.where(UPPER[0] == UPPER[1], 1.0, np.sqrt(2))
        products = products + np.triu(products, 1).T
        return self.radius * mean, self.radius**2 * (products - np.outer(mean, mean))


def frechet(view: View, total: NDArray[np.float64], patients: float, std: float) -> dict[str, Any]:
    """Frechet distance of synthetic images to the patients of a noised sum of moments; see :func:`_distance`."""
    from evaluation.image_space import gaussian_distance

    return _distance(view, total, patients, std, lambda a, b: gaussian_distance(view.gaussian(a), view.gaussian(b)))


def kernel(view: View, total: NDArray[np.float64], patients: float, std: float) -> dict[str, Any]:
    """Kernel distance of the same: the maximum mean discrepancy of a polynomial kernel of degree two, whose features the moments are."""
    return _distance(view, total, patients, std, lambda a, b: float(np.linalg.norm(a - b)))


def _distance(
    view: View,
    total: NDArray[np.float64],
    patients: float,
    std: float,
    apart: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
) -> dict[str, Any]:
    """How far the synthetic images' mean moments are from the patients'.

    ``floor`` is what a perfect generator would show with this noise and as many patients (mean of draws), ``noisy`` what was seen, ``value`` the
    rest, ``resolution`` what 19 of 20 such draws stay under; ``mean_only`` is what images of their class's mean would show above the floor. Not
    ``reliable`` when the resolution is more than a third of that.

    Args:
        total: (WIDTH,) sum over patients.
        patients: how many, estimated.
        std: of the noise in an entry, in the same units.
        apart: distance of two mean moments.
    """
    if patients < 1:
        return {"value": None, "why": "noise hides how many patients there are", "reliable": False}
    rows, rng = view.moments(view.drawn), np.random.default_rng(0)
    made, seen = rows.mean(axis=0), total / patients
    draws = [rows[rng.integers(0, len(rows), round(patients))].sum(axis=0) for _ in range(DRAWS)]
    floors = [apart(made, (drawn + rng.normal(0, std, WIDTH)) / patients) for drawn in draws]
    floor, noisy = float(np.mean(floors)), apart(made, seen)
    control = max(0.0, apart(view.control, seen) - floor)
    resolution = max(0.0, float(np.quantile(floors, 0.95)) - floor)
    return {
        "value": max(0.0, noisy - floor),
        "noisy": noisy,
        "floor": floor,
        "resolution": resolution,
        "mean_only": control,
        "reliable": resolution <= control / 3,
    }
