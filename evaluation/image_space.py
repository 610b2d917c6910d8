"""A fixed random space of images, and two distances in it: Frechet (Heusel et al. 2017) and kernel (Binkowski et al. 2018).

Nobody trained the network, so no weights come from elsewhere and no family was trained on its features. Random convolutions see shape and
contrast and hardly fine texture.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from medsynx.image_samplers import Images

#: principal directions of the real images that :func:`frechet` looks at, at most
DIRECTIONS = 64


class RandomSpace:
    """A fixed random network: three orthogonal convolutions, each layer averaged on a 2 x 2 grid."""

    def __init__(self, channels: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = [nn.Conv2d(channels, 32, 5, 1, 2), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, 2, 1)]
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """(images, channels, height, width) -> (images, 896)."""
        out = []
        for start in range(0, len(pixels), 250):
            found, parts = (torch.from_numpy(pixels[start : start + 250]) - 0.5) * 4, []
            for layer in self.layers:
                found = F.leaky_relu(layer(found), 0.2) * 1.5
                parts.append(F.adaptive_avg_pool2d(found, 2).flatten(1))
            out.append(torch.cat(parts, 1))
        return torch.cat(out).double().numpy()


def gaussian_distance(
    a: tuple[NDArray[np.float64], NDArray[np.float64]], b: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> float:
    """Frechet distance of two Gaussians, each mean and covariance. Eigenvalues that noise made negative count as 0."""
    root = _root(a[1])
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b[1] @ root), 0)).sum()
    traces = sum(np.maximum(np.linalg.eigvalsh(cov), 0).sum() for _, cov in (a, b))
    return float(((a[0] - b[0]) ** 2).sum() + traces - 2 * common)


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(cov)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def frechet(real: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Frechet distance of two Gaussians along the principal directions of ``real``, in units of its largest standard deviation.

    None for fewer than 16 images.
    """
    if min(len(real), len(other)) < 16:
        return None
    mean = real.mean(axis=0)
    _, spread, directions = np.linalg.svd(real - mean, full_matrices=False)
    kept = min(DIRECTIONS, len(real) // 8, len(directions))
    unit = spread[0] / np.sqrt(len(real))
    a, b = ((x - mean) @ directions[:kept].T / unit for x in (real, other))
    ca, cb = np.cov(a.T).reshape(kept, kept), np.cov(b.T).reshape(kept, kept)
    return gaussian_distance((a.mean(axis=0), ca), (b.mean(axis=0), cb))


def kernel_distance(real: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Squared maximum mean discrepancy under the kernel (x y / s + 1)**3, s the mean squared length; without bias, so it may be below 0.

    Features are taken from the mean of ``real``. None for fewer than 16 images.
    """
    if min(len(real), len(other)) < 16:
        return None
    a, b = real - real.mean(axis=0), other - real.mean(axis=0)
    scale = (a**2).sum(axis=1).mean()

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (x @ y.T / scale + 1) ** 3
        return found

    def within(x: NDArray[np.float64]) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def mean_only(train: Images) -> Images:
    """The control: images that show the mean of their class and a little smooth noise, as many of each class as there are."""
    from scipy.fft import idctn

    rng = np.random.default_rng(0)
    waves = np.zeros(train.pixels.shape, np.float32)
    waves[:, :, :10, :10] = rng.normal(0, 0.1, waves[:, :, :10, :10].shape)
    means = {k: train.pixels[train.label == k].mean(axis=0) for k in np.unique(train.label)}
    pixels = np.stack([means[k] for k in train.label]) + idctn(waves, axes=(2, 3), norm="ortho")
    return Images(np.clip(pixels, 0, 1).astype(np.float32), train.label)
