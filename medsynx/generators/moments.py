"""``moments``: each class as one Gaussian over its low spatial frequencies, in two secure sums. The plain baseline for images, and for few patients.

Round 1 sums each class's low-frequency DCT coefficients, round 2 the outer products of what is left of an image when its class's noised mean is taken
away, in a much smaller ball and so with less noise. Mean and covariance are the generator: nothing is trained, and images are blurred by what
the kept frequencies cannot show.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medsynx.generators.base import Arrays, Artefact, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.image_sum import ImageSum, left_out, present, shares
from medsynx.image_spec import ImageSpec
from medsynx.plan import PricedStep, Step
from medsynx.study import Study

MEANS, COVARIANCES = "means", "covariances"
MEAN_SHARE = 0.25  #: of the budget; the rest goes to the covariances, which are many more numbers
#: Radius of the balls that coefficients and residuals are clipped to, in root mean squared intensity (0..1) over the image.
MEAN_RADIUS, RESIDUAL_RADIUS = 10 / 28, 5 / 28


class Parameters(BaseModel):
    """What a study may say about ``moments``.

    Attributes:
        frequencies: K of the K x K lowest frequencies that are kept; more show more detail and take more noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    frequencies: int = Field(default=10, ge=2, le=16)


class Basis:
    """The lowest frequencies of a study's images.

    Args:
        frequencies: how many are kept along each axis, if the image has so many.
    """

    def __init__(self, spec: ImageSpec, frequencies: int) -> None:
        height, width, self.channels = spec.shape
        kept = min(frequencies, height, width)
        self.rows, self.columns = cosines(height, kept), cosines(width, kept)
        self.size = kept * kept * self.channels
        pixels = math.sqrt(height * width * self.channels)
        self.mean_radius, self.residual_radius = MEAN_RADIUS * pixels, RESIDUAL_RADIUS * pixels
        self.upper = np.triu_indices(self.size)
        self.means = ImageSum(self.size, len(spec.classes))
        self.covariances = ImageSum(len(self.upper[0]), len(spec.classes), counted=False)

    def coefficients(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """(images, channels, height, width) -> (images, size)."""
        return (self.rows @ (images.astype(np.float64) - 0.5) @ self.columns.T).reshape(len(images), -1)

    def outer(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Upper triangles of outer products, off the diagonal times sqrt(2): the norm is then the squared norm of the residual."""
        a, b = self.upper
        return residuals[:, a] * residuals[:, b] * np.where(a == b, 1, math.sqrt(2))

    def matrix(self, triangle: NDArray[np.float64]) -> NDArray[np.float64]:
        """One upper triangle back to a symmetric matrix (size, size)."""
        a, b = self.upper
        out = np.zeros((self.size, self.size))
        out[a, b] = out[b, a] = triangle / np.where(a == b, 1, math.sqrt(2))
        return out


def basis_of(study: Study) -> Basis:
    """The study's."""
    assert study.image is not None
    return Basis(study.image, Parameters.model_validate(study.family.parameters).frequencies)


def cosines(size: int, kept: int) -> NDArray[np.float64]:
    """The first ``kept`` rows of the orthonormal DCT-II matrix; shape (kept, size)."""
    from scipy.fft import dct

    return np.asarray(dct(np.eye(size), axis=0, norm="ortho")[:kept])


def in_ball(rows: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Rows over the radius, clipped to norm 1."""
    unit = rows / radius
    return unit / np.maximum(1, np.linalg.norm(unit, axis=1, keepdims=True))


class Moments:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """Means, then covariances."""
        basis = basis_of(study)
        return (
            Step(MEANS, "secure-sum", "train", basis.means.size, MEAN_SHARE, basis.means.sensitivity),
            Step(
                COVARIANCES,
                "secure-sum",
                "train",
                basis.covariances.size,
                1 - MEAN_SHARE,
                basis.covariances.sensitivity,
            ),
        )

    def next_step(self, study: Study, state: State) -> Step | None:
        """The first whose total is not there yet."""
        return next((s for s in self.plan(study) if s.name not in state.arrays), None)

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """The step's exact sum. Raises ValueError when the state's means are not of the study's shape."""
        assert isinstance(patients, ImagePatients)
        basis = basis_of(study)
        if priced.step.name == MEANS:
            return Contribution(
                {"sum": basis.means.add_up(patients, lambda x, _: in_ball(basis.coefficients(x), basis.mean_radius))}
            )
        means = np.asarray(state.arrays["class means"], float)
        if means.shape != (basis.means.classes, basis.size) or not np.isfinite(means).all():
            raise ValueError("the means do not have the study's shape")

        def residuals(images: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float64]:
            return basis.outer(in_ball(basis.coefficients(images) - means[label], basis.residual_radius))

        return Contribution({"sum": basis.covariances.add_up(patients, residuals)})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised total; after the first, the class means that the second takes away."""
        basis, name, vector = basis_of(study), priced.step.name, total.arrays["sum"]
        arrays: Arrays = {**state.arrays, name: vector}
        if name == MEANS:
            sums, counts = basis.means.split(vector)
            std = basis.means.count_std(total.noise_std)
            arrays["class means"] = (basis.mean_radius * sums / np.maximum(counts, max(std, 1.0))[:, None]).astype(
                np.float32
            )
        noise = {**state.facts.get("noise_std", {}), name: total.noise_std}
        return State(arrays, {**state.facts, "noise_std": noise})

    def export(self, study: Study, state: State) -> Artefact:
        """Means and factors of the covariances in one NPZ."""
        assert study.image is not None
        basis, noise = basis_of(study), state.facts["noise_std"]
        _, counts = basis.means.split(state.arrays[MEANS])
        std = basis.means.count_std(noise[MEANS])
        sums, _ = basis.covariances.split(state.arrays[COVARIANCES])
        share, here, ranks = shares(counts, std), present(counts, std), []
        factors = np.zeros((len(counts), basis.size, basis.size), np.float32)
        for k in np.flatnonzero(here):
            # A symmetric matrix of noise has eigenvalues up to twice this (Wigner's semicircle).
            edge = noise[COVARIANCES] / basis.covariances.bound * math.sqrt(basis.size / 2) / counts[k]
            values, vectors = np.linalg.eigh(basis.matrix(sums[k] / counts[k]))
            kept = np.sqrt(np.maximum(values**2 - 4 * edge**2, 0)) * (values > 2 * edge)
            factors[k] = basis.residual_radius * vectors * np.sqrt(kept)
            ranks.append(f"{study.image.classes[k]} {int((kept > 0).sum())}")
        rank = int((np.abs(factors).sum(axis=1) > 0).sum(axis=1).max(initial=1))
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            means=np.asarray(state.arrays["class means"], np.float32),
            factors=factors[:, :, -rank:],  # eigenvalues rise: the last columns hold what was kept
            rows=basis.rows.astype(np.float32),
            columns=basis.columns.astype(np.float32),
        )
        manifest = {"kind": "dct-gaussian", "file": "moments.npz", "shares": share}
        notes = (f"Directions of variation kept above the noise: {', '.join(ranks) or 'none'}.",)
        return Artefact({"moments.npz": buffer.getvalue()}, manifest, (*notes, *left_out(_classes(study), counts, std)))


def _classes(study: Study) -> tuple[str, ...]:
    spec: ImageSpec | None = study.image
    return spec.classes if spec else ()
