"""DP-SGD for any network: Poisson samples of patients, clipped and noised gradients, a public divisor (Abadi et al. 2016)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from medsynx.generators.base import Arrays, Patients
from medsynx.generators.dp_gan_networks import plain, tensors

# torch tells that Opacus' hooks fire on a first layer whose input needs no gradient; that is how they are meant here.
warnings.filterwarnings("ignore", message="Full backward hook is firing")

#: Layers through which one patient would reach another's gradient, or whose statistics would leave un-noised.
MIXING = (nn.modules.batchnorm._NormBase,)


class SecretNoise:
    """Standard normal numbers from an AES-256-CTR stream keyed by the operating system.

    torch's own generator keeps 32 bits of a seed and is predictable from its output; privacy noise must be neither. As in
    Opacus' secure mode, four draws make one number (Holohan and Braghin 2021, against floating-point attacks).
    """

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """``size`` numbers in (0, 1]."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), np.uint64)
        return ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 standard normals of this shape."""
        size = int(np.prod(shape))
        u = self.uniform(4 * size).reshape(2, 2 * size)
        radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * np.pi * u[1]
        pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(4, size)
        return torch.from_numpy((pairs.sum(axis=0) / 2).astype(np.float32)).reshape(shape)


class SecretNoiseOptimizer(DPOptimizer):
    """Opacus' optimiser with :class:`SecretNoise` in place of torch's generator, and a clip that holds for overflowing gradients too."""

    def __init__(self, optimizer: torch.optim.Optimizer, secret: SecretNoise, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.secret = secret

    def clip_and_accumulate(self) -> None:
        """Entries of a patient's gradient that are no finite numbers count as 0.

        Clipping cannot shorten them. A coordinator could choose weights that overflow on one rare value: the site would then fail exactly
        when a patient has it.
        """
        for p in self.params:
            p.grad_sample = torch.nan_to_num(p.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Noise of ``noise_multiplier * max_grad_norm`` on the summed clipped gradients."""
        for p in self.params:
            noise = self.secret.normal(tuple(p.shape)) * (self.noise_multiplier * self.max_grad_norm)
            p.grad = (p.summed_grad + noise.to(p.device)).view_as(p)


def patient_rows(patient: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """``(order, first, count)``: an order of the rows in which a patient's lie together, and where each patient's start and how many there are."""
    order = np.argsort(patient, kind="stable")
    count = np.bincount(patient).astype(np.int64)
    return order, np.cumsum(count) - count, count


def poisson_sample(
    secret: SecretNoise, first: NDArray[np.int64], count: NDArray[np.int64], rate: float
) -> NDArray[np.int64]:
    """Rows of a Poisson sample of patients, one row a patient, chosen at random among its own. Who joined is as secret as the noise."""
    joined = np.flatnonzero(secret.uniform(len(first)) <= rate)
    if not len(joined):
        return joined
    lent = np.floor((1 - secret.uniform(len(joined))) * count[joined]).astype(np.int64)
    return first[joined] + lent


class PatientSampler:
    """Poisson samples of patients: each joins with probability ``rate`` and lends one of its records at random."""

    def __init__(self, patients: Patients) -> None:
        self.secret = SecretNoise()
        self.order, self.first, self.count = patient_rows(patients.patient)

    def sample(self, rate: float) -> NDArray[np.int64]:
        """Positions of the lent records, one a patient."""
        return self.order[poisson_sample(self.secret, self.first, self.count, rate)]


class PrivateTrainer:
    """A network whose only contact with patients is through noised gradients.

    Args:
        network: its outputs must depend, row by row, on that row of its inputs alone.
        noise_multiplier: noise standard deviation / clip norm; 0 switches noise off (tests).
        batch: the public constant that gradients are divided by.

    Raises:
        ValueError: for a network with batch normalisation or with buffers, which would leave a site without noise.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        noise_multiplier: float,
        clip_norm: float,
        batch: int,
        learning_rate: float,
        **adam: Any,
    ) -> None:
        if any(isinstance(m, MIXING) for m in network.modules()) or list(network.buffers()):
            raise ValueError("batch statistics and buffers would leave a site without noise")
        self.network = GradSampleModule(network, loss_reduction="mean")
        self.parameters = [q for q in self.network.parameters() if q.requires_grad]
        self.optimizer = SecretNoiseOptimizer(
            torch.optim.Adam(self.parameters, lr=learning_rate, **adam),
            SecretNoise(),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=batch,
            loss_reduction="mean",
        )

    def step(
        self,
        real: Tensor,
        loss: Callable[[nn.Module, Tensor], Tensor],
        public: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        """One noisy step.

        Args:
            real: (patients in the batch, width); may be empty: the step is then noise alone.
            loss: of each row, shape (rows,).
            public: a further loss that sees no patient; its gradient is added after the noise.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.network.enable_hooks()
        if len(real):
            loss(self.network, real).mean().backward()
        else:
            for q in self.parameters:
                q.grad_sample = torch.zeros((0, *q.shape), device=q.device)
        self.optimizer.pre_step()  # clip each patient, add noise, divide by the public batch size
        self.network.disable_hooks()
        if public is not None:
            for q, gradient in zip(
                self.parameters, torch.autograd.grad(public(self.network), self.parameters), strict=True
            ):
                q.grad = q.grad + gradient
        self.optimizer.original_optimizer.step()

    def weights(self) -> Arrays:
        """The network's parameters, float32 by name."""
        return plain(self.network._module)


def load(module: nn.Module, weights: Arrays) -> nn.Module:
    """The module with these weights, every name of both matched."""
    module.load_state_dict(tensors(weights), strict=True)
    return module
