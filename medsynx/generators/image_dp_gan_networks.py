"""``image-dp-gan``'s networks (torch): the start from class Gaussians, fakes, records, the export. What the coordinator needs; no Opacus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsynx.generators.base import Arrays, ImagePatients
from medsynx.generators.dp_gan_networks import plain, tensors
from medsynx.generators.image_dp_gan import Parameters, taught
from medsynx.generators.image_networks import Critic, GeneratorFromMoments, device, to_onnx
from medsynx.generators.image_sizes import doublings
from medsynx.generators.moments import basis_of
from medsynx.study import Study

PULL = 30.0  #: weight of the means in the generator's loss: of their squared distance a pixel
QUIET = 0.3  #: of the last layer's first weights: the generator begins near the Gaussians


def settings(study: Study) -> Parameters:
    """The study's."""
    return Parameters.model_validate(study.family.parameters)


def make_generator(study: Study, weights: Arrays | None = None) -> GeneratorFromMoments:
    """The study's generator, with these weights."""
    assert study.image is not None
    where, spec = basis_of(taught(study)), study.image
    made = GeneratorFromMoments(spec.shape, len(spec.classes), settings(study).latent, where.rows, where.columns)
    if weights is not None:
        made.load_state_dict(tensors(weights))
    return made


def make_critic(study: Study) -> Critic:
    """The study's critic, as torch draws it."""
    assert study.image is not None
    return Critic(study.image.shape, len(study.image.classes), settings(study).critic_width)


def start(study: Study, gaussians: Arrays) -> Arrays:
    """Where every site starts: the measured Gaussians, and a public draw seeded by the study's digest, on which no privacy rests.

    Args:
        gaussians: ``means`` (classes, size) and ``factors`` (classes, size, directions), of which the last are the largest.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(study.digest[:16], 16))
        weights = plain(make_generator(study))
    assert study.image is not None
    last = f"draw.{4 * doublings(study.image.shape)}.weight"
    weights[last] = QUIET * weights[last]
    weights["means"], found = gaussians["means"], gaussians["factors"][:, :, -settings(study).latent :]
    factors = np.zeros((*found.shape[:2], settings(study).latent), np.float32)
    factors[:, :, : found.shape[2]] = found
    return weights | {"factors": factors.reshape(len(factors), -1)}


class Fakes:
    """Batches of fakes as the critic sees them, and how far their classes' means are from the measured ones.

    Args:
        facts: of the state; public.
    """

    def __init__(self, study: Study, facts: dict[str, Any]) -> None:
        where, p, place = basis_of(taught(study)), settings(study), device()
        self.batch, self.latent, self.place = p.batch, p.latent, place
        self.share = torch.tensor(facts["shares"], device=place)
        self.rows, self.columns = (torch.from_numpy(m).float().to(place) for m in (where.rows, where.columns))
        self.means = torch.tensor(facts["means"], device=place)

    def labels(self) -> Tensor:
        """One-hot, (batch, classes), by the classes' shares."""
        return torch.eye(len(self.share), device=self.place)[torch.multinomial(self.share, self.batch, True)]

    def __call__(self, generator: GeneratorFromMoments) -> tuple[Tensor, Tensor]:
        """(batch, pixels and class), and the pull to the means."""
        label = self.labels()
        images = generator(torch.randn(self.batch, self.latent, device=self.place), label)
        return torch.cat([images.flatten(1), label], 1), PULL * self.apart(images, label) / images[0].numel()

    def apart(self, images: Tensor, label: Tensor) -> Tensor:
        """Squared distance of the classes' mean coefficients, weighted by share, without the bias of a batch's own scatter."""
        found = (self.rows @ (images - 0.5) @ self.columns.T).flatten(1)
        out = torch.zeros((), device=self.place)
        for k, share in enumerate(self.share.tolist()):
            own = found[label[:, k] > 0]
            if len(own) > 1:
                mean, each = own.mean(0), len(own)
                square = (each * (mean**2).sum() - (own**2).sum(1).mean()) / (each - 1)
                out = out + share * (square - 2 * (mean * self.means[k]).sum() + (self.means[k] ** 2).sum())
        return out


def records_of(study: Study, patients: ImagePatients, place: str) -> Callable[[Any], Tensor]:
    """Positions of images -> (positions, pixels and one-hot class)."""
    assert study.image is not None
    classes = np.eye(len(study.image.classes), dtype=np.float32)

    def records(at: Any) -> Tensor:
        pixels = patients.images[at].reshape(len(at), math.prod(patients.images.shape[1:]))
        return torch.from_numpy(np.concatenate([pixels, classes[patients.codes[at, 0]]], axis=1)).to(place)

    return records


def export(study: Study, weights: Arrays) -> bytes:
    """The generator as ONNX."""
    assert study.image is not None
    return to_onnx(make_generator(study, weights).eval(), settings(study).latent, len(study.image.classes))
