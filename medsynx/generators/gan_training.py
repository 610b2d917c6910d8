"""Training any of our GANs at a site: Opacus on the critic, secret noise, nothing chosen by looking at real records.

One critic step: every patient joins the batch with probability ``sample_rate`` and lends one record at random; each patient's gradient is
clipped, the sum is noised (Abadi et al. 2016) and divided by a public constant; then the gradient on fakes is added as it is, because fakes
come from the generator, which has seen no patient but through earlier noised steps. Everything the generator learns is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medsynx.generators.averaging import BETAS
from medsynx.generators.base import Patients
from medsynx.generators.dp_gan_networks import faded, set_rate
from medsynx.generators.dpsgd import MIXING, SecretNoise, SecretNoiseOptimizer, patient_rows, poisson_sample
from medsynx.generators.gan_parameters import GanParameters
from medsynx.plan import Sampling


class CriticTrainer:
    """A critic under DP-SGD.

    Args:
        network: record -> logit, row by row.
        noise_multiplier: noise standard deviation / clip norm; 0 switches noise off (tests).
        expected: public number of patients a batch is expected to hold, by which the noised sum is divided; ``p.batch`` when omitted.

    Raises:
        ValueError: for a network in which one patient would reach another's gradient.
    """

    def __init__(
        self, network: nn.Module, p: GanParameters, noise_multiplier: float, expected: float | None = None
    ) -> None:
        if any(isinstance(m, MIXING) for m in network.modules()):
            raise ValueError("batch statistics mix patients")
        self.secret, self.clip_norm = SecretNoise(), p.clip_norm
        self.critic = GradSampleModule(network, loss_reduction="mean")
        self.critic.disable_hooks()  # but for the two passes of a step: a stray forward pass would confuse Opacus' count
        self.parameters = [q for q in self.critic.parameters() if q.requires_grad]
        self.optimizer = SecretNoiseOptimizer(
            torch.optim.AdamW(self.parameters, lr=p.critic_rate, betas=BETAS, weight_decay=p.critic_decay),
            self.secret,
            noise_multiplier=noise_multiplier,
            max_grad_norm=p.clip_norm,
            expected_batch_size=p.batch if expected is None else expected,
            loss_reduction="mean",
        )

    def sample(self, first: NDArray[np.int64], count: NDArray[np.int64], rate: float) -> NDArray[np.int64]:
        """See :func:`poisson_sample`."""
        return poisson_sample(self.secret, first, count, rate)

    def step(self, real: Tensor, fake: Tensor) -> None:
        """One noisy step. ``real`` (patients in the batch, width) may be empty: the step is then noise and fakes alone.

        Each fake is clipped as a patient is: where generator and patients agree, the two gradients cancel whatever the clipping did.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.critic.enable_hooks()
        F.softplus(self.critic(fake)).mean().backward()
        each = [q.grad_sample for q in self.parameters]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in each]).norm(dim=0)
        scale = (self.clip_norm / norm.clamp_min(1e-12)).clamp_max(1) / len(fake)
        on_fakes = [torch.einsum("n,n...->...", scale, g) for g in each]
        self.optimizer.zero_grad(set_to_none=True)
        if len(real):
            F.softplus(-self.critic(real)).mean().backward()
        else:
            for q in self.parameters:
                q.grad_sample = torch.zeros((0, *q.shape), device=q.device)
        self.optimizer.pre_step()  # clip each patient, add noise, divide by the public batch size
        self.critic.disable_hooks()
        for q, gradient in zip(self.parameters, on_fakes, strict=True):
            q.grad = q.grad + gradient
        self.optimizer.original_optimizer.step()


def play(
    p: GanParameters,
    generator: nn.Module,
    trainer: CriticTrainer,
    draw: Callable[[], tuple[Tensor, Tensor]],
    patients: Patients,
    records: Callable[[NDArray[np.int64]], Tensor],
    sampling: Sampling,
    over: tuple[float, float],
) -> nn.Module:
    """One round of the game at one site.

    Args:
        generator: the shared one; it is trained in place.
        draw: fakes as records (``p.batch``, width) through which the generator learns, and a further public loss of theirs.
        records: positions of rows -> these patients' records, (positions, width).
        over: share of the whole training that is over before and after this round.

    Returns:
        The running mean of the generator.
    """
    order, first, count = patient_rows(patients.patient)
    shared = {n: q.detach().clone() for n, q in generator.named_parameters()}
    mean = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(p.average))
    ahead = torch.optim.Adam(generator.parameters(), lr=p.generator_rate, betas=BETAS)
    for number in range(1, sampling.iterations + 1):
        done = over[0] + (over[1] - over[0]) * number / sampling.iterations
        set_rate(trainer.optimizer.original_optimizer, faded(p.critic_rate, done))
        set_rate(ahead, faded(p.generator_rate, done))
        with torch.no_grad():
            fake, _ = draw()
        trainer.step(records(order[trainer.sample(first, count, sampling.rate)]), fake)
        for _ in range(p.generator_steps if number % p.generator_every == 0 else 0):
            fake, further = draw()
            loss = F.softplus(-trainer.critic(fake)).mean() + further
            if p.proximal:
                loss = loss + p.proximal / 2 * sum(
                    ((q - shared[n]) ** 2).sum() for n, q in generator.named_parameters()
                )
            ahead.zero_grad()
            loss.backward()
            ahead.step()
            mean.update_parameters(generator)
    trained: nn.Module = mean.module
    return trained
