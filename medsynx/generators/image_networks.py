"""Networks of the image families: the generator that all of them publish, the critic of ``image-dp-gan``, and ONNX."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynx.generators.image_sizes import HIDDEN, WIDTH, grid, stages, widths

GROUPS = 4  #: of group normalisation
DARK = 0.02  #: the Gaussian's pixels keep this far from black and white, where a logit has no end
SLOPE = 0.2  #: of the critic's leaky ReLU


class Generator(nn.Module):
    """Noise and class -> pixels: two linear layers to a coarse grid, then doubling and convolution up to the size.

    Args:
        shape: height, width, channels; a grid that does not fit is cut.
        grouped: group instead of batch normalisation: no statistics that would have to be averaged over sites.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, latent: int, *, grouped: bool = False) -> None:
        super().__init__()
        self.height, self.width, channels = shape
        self.grid, wide = grid(shape), widths(shape)

        def norm(wide: int, batch: type[nn.Module]) -> nn.Module:
            return nn.GroupNorm(GROUPS, wide) if grouped else batch(wide)

        coarse = WIDTH * self.grid[0] * self.grid[1]
        self.project = nn.Sequential(
            nn.Linear(latent + classes, HIDDEN),
            norm(HIDDEN, nn.BatchNorm1d),
            nn.ReLU(),
            nn.Linear(HIDDEN, coarse),
            norm(coarse, nn.BatchNorm1d),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(wide):
            layers += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(before, after, 3, padding=1),
                norm(after, nn.BatchNorm2d),
                nn.ReLU(),
            ]
        self.draw = nn.Sequential(*layers, nn.Conv2d(wide[-1], channels, 5, padding=2))

    def logits(self, z: Tensor, label: Tensor) -> Tensor:
        """Of the pixels."""
        coarse = self.project(torch.cat([z, label], 1)).view(-1, WIDTH, *self.grid)
        return torch.as_tensor(self.draw(coarse))[:, :, : self.height, : self.width]

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """(images, latent) and one-hot (images, classes) -> (images, channels, height, width) in 0..1."""
        return self.logits(z, label).sigmoid()


class GeneratorFromMoments(Generator):
    """The same, on top of one learnt Gaussian a class over low frequencies (as ``moments`` makes), drawn from the same noise.

    Args:
        rows, columns: cosines, (frequencies, pixels) along each axis.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        latent: int,
        rows: NDArray[np.float64],
        columns: NDArray[np.float64],
    ) -> None:
        super().__init__(shape, classes, latent, grouped=True)
        self.block, self.latent = (shape[2], len(rows), len(columns)), latent
        size = math.prod(self.block)
        self.means = nn.Parameter(torch.zeros(classes, size))
        self.factors = nn.Parameter(torch.zeros(classes, size * latent))
        self.register_buffer("rows", torch.from_numpy(rows).float(), persistent=False)
        self.register_buffer("columns", torch.from_numpy(columns).float(), persistent=False)

    def logits(self, z: Tensor, label: Tensor) -> Tensor:
        """Of the pixels."""
        factors = (label @ self.factors).view(-1, math.prod(self.block), self.latent)
        found = label @ self.means + (factors @ z[:, :, None])[:, :, 0]
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        pixels = (rows.T @ found.view(-1, *self.block) @ columns + 0.5).clamp(DARK, 1 - DARK)
        return super().logits(z, label) + (pixels / (1 - pixels)).log()


class Critic(nn.Module):
    """Pixels and class -> one logit, positive for real: strided convolutions, then a linear map of what they found for each class (a projection
    discriminator, Miyato and Koyama 2018). An image's logit depends on that image alone.

    Args:
        shape: height, width, channels.
        wide: channels of the first convolution.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, wide: int) -> None:
        super().__init__()
        height, width, channels = shape
        self.image, self.classes = (channels, height, width), classes
        found, last = stages(shape, wide)
        layers: list[nn.Module] = []
        for fed, made in found:
            layers += [nn.Conv2d(fed, made, 4, 2, 1), nn.GroupNorm(math.gcd(GROUPS, made), made), nn.LeakyReLU(SLOPE)]
        self.look = nn.Sequential(*layers, nn.Flatten())
        self.common, self.own = nn.Linear(last, 1), nn.Linear(last, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, pixels in 0..1 and one-hot class, one after the other) -> (rows, 1)."""
        pixels, label = rows[:, : -self.classes], rows[:, -self.classes :]
        found = self.look(2 * pixels.view(-1, *self.image) - 1)
        out: Tensor = self.common(found) + (self.own(found) * label).sum(1, keepdim=True)
        return out


def device() -> str:
    """Where networks are trained: the graphics card where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_onnx(generator: Generator, latent: int, classes: int) -> bytes:
    """The network in inference mode (opset 17), for any number of images."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter we use announces its successor, which needs onnxscript
        torch.onnx.export(
            generator,
            (torch.zeros(2, latent), torch.eye(classes)[[0, 0]]),
            out,  # type: ignore[arg-type]  # in memory: the annotation knows files only
            input_names=["z", "label"],
            output_names=["pixels"],
            dynamic_axes={n: {0: "images"} for n in ("z", "label", "pixels")},
            opset_version=17,
            dynamo=False,
        )
    return out.getvalue()
