"""Training of ``mean-embedding``'s generator at the coordinator (torch). It sees the noised embedding and nothing else.

The loss is the squared distance of mean features, without the bias that a batch's own scatter brings (the U-statistic of Gretton et al. 2012): for a
batch of b images with features f_i and mean m, ``-2 <target, m> + (b |m|^2 - mean |f_i|^2) / (b - 1)``. Draws are seeded by the study: they are no
privacy noise, and the same embedding then gives the same generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynx.generators.image_networks import Generator, device, to_onnx
from medsynx.generators.random_features import RandomFeatures
from medsynx.progress import track

if TYPE_CHECKING:
    from medsynx.generators.mean_embedding import Parameters

BATCH, LEAST = 128, 24  #: images of a step over all classes, and of one class at least


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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(shape, len(targets), parameters.latent)
        _fit(generator.to(device()), features, torch.from_numpy(targets[here]).to(device()), here, parameters)
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
