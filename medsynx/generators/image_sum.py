"""Features of images as one vector of integers, a block a class: the cargo of the image families, with its sensitivity.

A patient's images are averaged before anything is added: the patient's vector is the mean over the images of [features, COUNT], each in the block of
its class. The features of an image have L2 norm 1 at most, so the patient's vector has norm sqrt(1 + COUNT**2) at most, however many images there
are and whatever their labels (triangle inequality). Turned into integers towards zero, no entry and so no norm grows; a last exact check on
the integers makes the bound independent of floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from medsynx.errors import MedsynxError
from medsynx.generators.base import ImagePatients
from medsynx.plan import Sensitivity

UNIT = 2**16  #: integers a unit: about 1,000 steps in a typical random feature
COUNT = 0.3  #: what a patient adds to the count of a class; small, since it takes part in the norm
#: Images whose features are computed at a time. Every batch is filled up to it: with features that, to the last bit, do not depend on where an image
#: stands in its batch, nothing depends on the others, and neighbouring data sets differ by one patient's vector and nothing else.
BATCH = 128

Features = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.floating]]


class ImageSum:
    """The layout of a vector: ``classes`` blocks of ``width`` features and, unless ``counted`` is False, a count.

    Args:
        width: features of an image.
    """

    def __init__(self, width: int, classes: int, *, counted: bool = True) -> None:
        self.width, self.classes, self.counted = width, classes, counted
        self.size = classes * (width + counted)
        self.bound = math.ceil(UNIT * math.sqrt(1 + COUNT**2)) if counted else UNIT

    @property
    def sensitivity(self) -> Sensitivity:
        """Of one patient with any images."""
        return Sensitivity(
            self.bound,
            UNIT,
            "a patient's images are averaged; an image's features have norm 1 at most; integers are cut towards zero and checked",
        )

    def add_up(self, patients: ImagePatients, features: Features) -> NDArray[np.int64]:
        """All patients as one vector in units.

        Args:
            features: images (BATCH, channels, height, width) and their classes -> (BATCH, width), rows of norm 1 at most, each of its image alone.
        """
        out = np.zeros((self.classes, self.width + self.counted), np.int64)
        for at in _whole_patients(patients.patient):
            label, person = patients.codes[at, 0], patients.patient[at]
            rows = in_batches(features, patients.images[at], label).astype(np.float64)
            if self.counted:
                rows = np.hstack([rows, np.full((len(rows), 1), COUNT)])
            _, person, images = np.unique(person, return_inverse=True, return_counts=True)
            cell, place = np.unique(person * self.classes + label, return_inverse=True)
            mean = csr_matrix((1 / images[person], (place, np.arange(len(at)))), (len(cell), len(at)))
            entries = np.nan_to_num(mean @ rows, nan=0.0).clip(
                -1, 1
            )  # as they are, but for features that break their promise
            vectors = self._bounded(np.trunc(UNIT * entries).astype(np.int64), cell // self.classes)
            np.add.at(out, cell % self.classes, vectors)
        return out.ravel()

    def _bounded(self, vectors: NDArray[np.int64], person: NDArray[np.int64]) -> NDArray[np.int64]:
        """Shrink the rows of a person whose integers are longer than the bound: never, but for rounding or features that break their promise."""
        starts = np.flatnonzero(np.diff(person, prepend=-1))
        squares = np.add.reduceat((vectors**2).sum(axis=1), starts)
        long = np.flatnonzero(squares > self.bound**2)
        if len(long):
            factor = np.ones(len(starts))
            factor[long] = (1 - 1e-9) * self.bound / np.sqrt(squares[long].astype(float))
            scaled = vectors * factor[np.searchsorted(starts, np.arange(len(vectors)), side="right") - 1][:, None]
            vectors = np.trunc(scaled).astype(np.int64)
        return vectors

    def split(self, vector: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A total in units back to sums of features (classes, width), and counts of patients (classes,), zeros when not counted."""
        blocks = vector.reshape(self.classes, -1) / UNIT
        return blocks[:, : self.width], blocks[:, self.width] / COUNT if self.counted else np.zeros(self.classes)

    @staticmethod
    def count_std(noise_std: float) -> float:
        """Standard deviation of the noise in a class's count, in patients."""
        return noise_std / UNIT / COUNT


def _whole_patients(patient: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices of the images in groups of about four batches that never part a patient."""
    order = np.argsort(patient, kind="stable")
    start = 0
    while start < len(order):
        end = min(start + 4 * BATCH, len(order))
        end = int(np.searchsorted(patient[order], patient[order[end - 1]], side="right"))
        yield order[start:end]
        start = end


def in_batches(features: Features, images: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.floating]:
    """Features of any number of images, computed :data:`BATCH` at a time."""
    out = []
    for start in range(0, len(images), BATCH):
        chunk, names = images[start : start + BATCH], label[start : start + BATCH]
        spare = BATCH - len(chunk)
        full = np.concatenate([chunk, np.zeros((spare, *images.shape[1:]), np.float32)])
        out.append(features(full, np.concatenate([names, np.zeros(spare, np.int64)]))[: len(chunk)])
    return np.concatenate(out)


def present(counts: NDArray[np.float64], std: float) -> NDArray[np.bool_]:
    """Classes whose noised count stands out of its noise by three standard deviations; nothing can be said of the others."""
    return counts > max(3 * std, 1.0)


def shares(counts: NDArray[np.float64], std: float) -> list[float]:
    """Share of each class among synthetic images; 0 for those not :func:`present`. Raises ``patients-too-few`` when none is."""
    kept = np.where(present(counts, std), counts, 0.0)
    if not kept.any():
        raise MedsynxError(
            "patients-too-few",
            "noise hides how many patients each class has: nothing can be made",
            hint="Bring in more patients, or raise epsilon.",
        )
    return [round(float(s), 6) for s in kept / kept.sum()]


def left_out(classes: tuple[str, ...], counts: NDArray[np.float64], std: float) -> list[str]:
    """A sentence on the classes that are not made, if there are any."""
    absent = [c for c, here in zip(classes, present(counts, std), strict=True) if not here]
    return [f"Not made, since noise hides how many patients have it: {', '.join(absent)}."] if absent else []
