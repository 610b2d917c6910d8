"""DP-SGD for any network: Poisson samples of patients, clipped and noised gradients, a public divisor (Abadi et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from medsynx.generators.base import Arrays, Patients
from medsynx.generators.dp_gan_networks import plain, tensors
from medsynx.generators.dp_gan_training import SecretNoise, SecretNoiseOptimizer, patient_rows, poisson_sample

#: Layers through which one patient would reach another's gradient, or whose statistics would leave un-noised.
MIXING = (nn.modules.batchnorm._NormBase,)


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
                q.grad_sample = torch.zeros((0, *q.shape))
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
