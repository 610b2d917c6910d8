"""Clipped gradients of the critic as bounded integers: what a site adds to the secure sum in ``dp-gan``'s mode ``summed``.

A record's gradient of a layer is the outer product of what flows back into it and what it was fed (a constant for the bias among it), so its
squared norm is the sum over the layers of a product of two squared norms, and a batch's sum is one matrix product a layer (Goodfellow 2015). Both
factors are scaled to the bound and cut to integers towards zero *before* they are multiplied: a record's entries are then whole numbers, its norm is
known exactly and at most :data:`NORM`, and sums are exact in float64 (below 2^53), in whatever order they are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsynx import codec
from medsynx.generators.base import Arrays, Patients
from medsynx.plan import PricedStep, Sensitivity
from medsynx.study import Study

if TYPE_CHECKING:
    from medsynx.generators.dp_gan import Parameters

NORM = 2**16  #: L2 norm, in units, of one patient's part of the sum
FED = 2**6  #: units that a layer's input of 1 counts
SLOPE = 0.2  #: of the leaky ReLU
#: Rows computed at a time. Every batch is filled up to it: a matrix product of another shape adds up in another order, and a row's integers
#: must not depend on who else is in the sample.
BATCH = 128
SENSITIVITY = Sensitivity(
    float(NORM), float(NORM), "a patient lends one record, whose integer gradient of a larger norm is left out"
)
CRITIC, SERVER, MEAN = (
    "critic.",
    "server.generator.",
    "server.mean.",
)  #: beginnings of names in a state; those of the server are not sent


def widths(width: int, hidden: int) -> list[tuple[int, int]]:
    """(out, in) of the critic's layers."""
    return [(hidden, width), (hidden, hidden), (1, hidden)]


def size(width: int, hidden: int) -> int:
    """Numbers in the sum: weights and biases."""
    return sum(out * (fed + 1) for out, fed in widths(width, hidden))


def split(vector: NDArray[np.float64], width: int, hidden: int) -> list[NDArray[np.float64]]:
    """A sum as one matrix a layer, (out, in + 1); the bias is the last column."""
    shapes = [(out, fed + 1) for out, fed in widths(width, hidden)]
    ends = np.cumsum([a * b for a, b in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]


def start(study: Study, p: Parameters, generator: Arrays) -> Arrays:
    """The first state of the training: a public draw of the critic, the generator, and its running mean."""
    rng = np.random.default_rng(int(study.digest[16:32], 16))
    arrays: Arrays = {}
    inputs = len(codec.sizes(study))  # of a one-hot row's entries, so many are 1
    for k, (out, fed) in enumerate(widths(sum(codec.sizes(study)), p.critic_hidden)):
        scale = (1 / inputs) ** 0.5 if k == 0 else (2 / fed) ** 0.5
        layer = np.zeros((out, fed + 1), np.float32)
        layer[:, :-1] = rng.normal(0, scale if out > 1 else 0.3 * scale, (out, fed))
        arrays[f"{CRITIC}{k}"] = layer
    arrays |= {SERVER + n: a for n, a in generator.items()}
    return arrays | {MEAN + n: a for n, a in generator.items()}


def published(arrays: Arrays) -> Arrays:
    """The running mean of the generator's weights."""
    return {n.removeprefix(MEAN): a for n, a in arrays.items() if n.startswith(MEAN)}


def critic_of(arrays: Arrays, width: int, hidden: int) -> list[NDArray[np.float64]]:
    """The critic's layers, (out, in + 1) each. Raises ValueError when the state holds another network."""
    layers = [np.asarray(arrays[f"{CRITIC}{k}"], np.float64) for k in range(3)]
    if [layer.shape for layer in layers] != [(out, fed + 1) for out, fed in widths(width, hidden)]:
        raise ValueError("the critic does not have the study's shape")
    return layers


def clipped_sum(
    critic: list[NDArray[np.float64]], rows: NDArray[np.float64], clip_norm: float, *, real: bool
) -> NDArray[np.int64]:
    """Sum over rows of the loss's clipped gradients, in units of ``clip_norm / NORM``.

    Each row moves the sum by :data:`NORM` units at most in L2, whatever it and the critic hold: one for which that fails is left out.

    Args:
        rows: one-hot, shape (rows, width).
        real: log-likelihood of being real, or of being fake.
    """
    total = np.zeros(sum(layer.size for layer in critic), np.int64)
    for start in range(0, len(rows), BATCH):
        chunk = rows[start : start + BATCH]
        full = np.concatenate([chunk, np.zeros((BATCH - len(chunk), rows.shape[1]))])
        total += _batch_sum(critic, full, np.arange(BATCH) < len(chunk), clip_norm, real)
    return total


def _batch_sum(
    critic: list[NDArray[np.float64]], rows: NDArray[np.float64], there: NDArray[np.bool_], clip_norm: float, real: bool
) -> NDArray[np.int64]:
    """:func:`clipped_sum` of the rows that are ``there``."""
    with np.errstate(all="ignore"):
        fed, slopes, last = [], [], rows
        for layer in critic:
            fed.append(np.concatenate([last, np.ones((len(last), 1))], axis=1))
            out = fed[-1] @ layer.T
            slopes.append(np.where(out > 0, 1.0, SLOPE))
            last = out * slopes[-1]
        back = 1 / (1 + np.exp(-out))
        flows = [back - 1 if real else back]
        for layer, slope in zip(critic[:0:-1], slopes[-2::-1], strict=True):
            flows.insert(0, (flows[0] @ layer[:, :-1]) * slope)
        norm = np.sqrt(np.sum([_squares(d) * _squares(a) for d, a in zip(flows, fed, strict=True)], axis=0))
        scale = np.minimum(1, clip_norm / norm) * (NORM / clip_norm / FED)
        whole = [(np.trunc(d * scale[:, None]), np.trunc(a * FED)) for d, a in zip(flows, fed, strict=True)]
        bounded = np.sum([_squares(d) * _squares(a) for d, a in whole], axis=0) <= NORM**2  # false for NaN
        bounded &= there
    parts = [(np.where(bounded[:, None], d, 0).T @ np.where(bounded[:, None], a, 0)).ravel() for d, a in whole]
    return np.concatenate(parts).astype(np.int64)


def _squares(a: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", a, a)


def sampled_sum(
    study: Study, p: Parameters, priced: PricedStep, arrays: Arrays, patients: Patients
) -> NDArray[np.int64]:
    """One site's part of a round: a Poisson sample of its patients, each lending one of its records."""
    from medsynx.generators.dpsgd import SecretNoise, patient_rows, poisson_sample

    assert priced.step.sampling is not None
    order, first, count = patient_rows(patients.patient)
    joined = order[poisson_sample(SecretNoise(), first, count, priced.step.sampling.rate)]
    rows = codec.to_onehot(patients.codes[joined], study).astype(np.float64)
    critic = critic_of(arrays, sum(codec.sizes(study)), p.critic_hidden)
    return clipped_sum(critic, rows, p.clip_norm, real=True)
