"""Training of ``mean-embedding``'s generator at the coordinator (torch). It sees the noised embedding and nothing else.

The loss is the squared distance of mean features, without the bias that a batch's own scatter brings (the U-statistic of Gretton et al. 2012): for a
batch of b images with features f_i and mean m, ``-2 <target, m> + (b |m|^2 - mean |f_i|^2) / (b - 1)``. Draws are seeded by the study: they are no
privacy noise, and the same embedding then gives the same generator.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynx.generators.random_features import RandomFeatures
from medsynx.progress import track

if TYPE_CHECKING:
    from medsynx.generators.mean_embedding import Parameters

BATCH, LEAST = 128, 24  #: images of a step over all classes, and of one class at least
WIDTH = 32  #: channels at the coarsest size


class Generator(nn.Module):
    """Noise and class -> pixels: two linear layers to a coarse grid, then doubling and convolution up to the size.

    Args:
        shape: height, width, channels; a grid that does not fit is cut.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, latent: int) -> None:
        super().__init__()
        self.height, self.width, channels = shape
        doublings = max(1, math.floor(math.log2(min(self.height, self.width) / 7)))
        self.grid = tuple(math.ceil(s / 2**doublings) for s in (self.height, self.width))
        self.project = nn.Sequential(
            nn.Linear(latent + classes, 200),
            nn.BatchNorm1d(200),
            nn.ReLU(),
            nn.Linear(200, WIDTH * self.grid[0] * self.grid[1]),
            nn.BatchNorm1d(WIDTH * self.grid[0] * self.grid[1]),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        wide = WIDTH
        for _ in range(doublings):
            narrow = max(wide // 2, 16)
            layers += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(wide, narrow, 3, padding=1),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
            ]
            wide = narrow
        self.draw = nn.Sequential(*layers, nn.Conv2d(wide, channels, 5, padding=2), nn.Sigmoid())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """(images, latent) and one-hot (images, classes) -> (images, channels, height, width) in 0..1."""
        coarse = self.project(torch.cat([z, label], 1)).view(-1, WIDTH, *self.grid)
        return torch.as_tensor(self.draw(coarse))[:, :, : self.height, : self.width]


def train(
    features: RandomFeatures,
    targets: NDArray[np.float32],
    here: NDArray[np.bool_],
    shape: tuple[int, int, int],
    parameters: Parameters,
    *,
    seed: int,
) -> bytes:
    """The generator as ONNX.

    Args:
        targets: mean features of each class, (classes, features).
        here: classes to learn.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(shape, len(targets), parameters.latent)
        _fit(generator.to(device), features, torch.from_numpy(targets[here]).to(device), here, parameters)
    return to_onnx(generator.cpu().eval(), parameters.latent, len(targets))


def _fit(
    generator: Generator, features: RandomFeatures, target: Tensor, here: NDArray[np.bool_], p: Parameters
) -> None:
    embed = features.for_torch(target.device)
    each = max(LEAST, BATCH // len(target))
    label = torch.eye(len(here), device=target.device)[torch.from_numpy(np.flatnonzero(here))].repeat_interleave(
        each, 0
    )
    optimiser = torch.optim.Adam(generator.parameters(), p.learning_rate, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, p.steps)
    generator.train()
    for _ in track(range(p.steps), "training the generator", p.steps):
        z = torch.randn(len(label), p.latent).to(target.device)
        found = embed(generator(z, label)).view(len(target), each, -1)
        mean, own = found.mean(1), (found**2).sum(2).mean(1)
        loss = (-2 * (target * mean).sum(1) + (each * (mean**2).sum(1) - own) / (each - 1)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


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
