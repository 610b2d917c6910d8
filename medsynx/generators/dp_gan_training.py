"""Training a GAN at a site: Opacus on the critic, secret noise, nothing chosen by looking at real rows.

One critic step: every patient joins the batch with probability ``sample_rate`` and lends one record at random; each patient's gradient is
clipped, the sum is noised (Abadi et al. 2016) and divided by a public constant; then the gradient on fakes is added as it is, because fakes
come from the generator, which has seen no patient but through earlier noised steps. Everything the generator learns is post-processing.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medsynx import codec
from medsynx.generators.averaging import BETAS
from medsynx.generators.base import Arrays, Patients, State
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import (
    Generator,
    faded,
    fake_rows,
    make_critic,
    plain,
    pull_to_margins,
    set_rate,
    tensors,
)
from medsynx.generators.dpsgd import SecretNoise, SecretNoiseOptimizer, patient_rows, poisson_sample
from medsynx.plan import PricedStep
from medsynx.study import Study


class CriticTrainer:
    """A critic under DP-SGD.

    Args:
        noise_multiplier: noise standard deviation / clip norm; 0 switches noise off (tests).
        expected: public number of patients a batch is expected to hold, by which the noised sum is divided; ``p.batch`` when omitted.
    """

    def __init__(self, width: int, p: Parameters, noise_multiplier: float, expected: float | None = None) -> None:
        self.secret, self.clip_norm = SecretNoise(), p.clip_norm
        self.critic = GradSampleModule(make_critic(width, p.critic_hidden), loss_reduction="mean")
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
                q.grad_sample = torch.zeros((0, *q.shape))
        self.optimizer.pre_step()  # clip each patient, add noise, divide by the public batch size
        self.critic.disable_hooks()
        for q, gradient in zip(self.parameters, on_fakes, strict=True):
            q.grad = q.grad + gradient
        self.optimizer.original_optimizer.step()


def train(
    study: Study, p: Parameters, priced: PricedStep, state: State, weights: Arrays, patients: Patients, keep: Arrays
) -> tuple[Arrays, Arrays]:
    """One round at one site.

    Args:
        state: public; says which round this is and what the single columns look like.
        weights: the shared generator.
        keep: this site's critic of the round before, or empty.

    Returns:
        The trained generator (its running mean over the last steps) and the critic, float32 by name.
    """
    assert priced.step.sampling is not None
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # fakes only; privacy noise is SecretNoise's
    sizes, rate, steps = codec.sizes(study), priced.step.sampling.rate, priced.step.sampling.iterations
    margins = torch.tensor(state.facts["margins"])
    order, first, count = patient_rows(patients.patient)
    rows = torch.from_numpy(codec.to_onehot(patients.codes[order], study))

    generator = Generator(p.latent, p.hidden, sum(sizes))
    generator.load_state_dict(tensors(weights))
    shared = {n: q.detach().clone() for n, q in generator.named_parameters()}
    mean = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(p.average))
    expected = max(1.0, rate * float(state.facts["patients"]) / int(state.facts["sites"]))
    trainer = CriticTrainer(sum(sizes), p, priced.noise_multiplier, expected)
    if keep:
        trainer.critic.load_state_dict(tensors(keep))
    ahead = torch.optim.Adam(generator.parameters(), lr=p.generator_rate, betas=BETAS)
    for number in range(1, steps + 1):
        done = (int(state.facts["rounds"]) + number / steps) / p.exchanges
        set_rate(trainer.optimizer.original_optimizer, faded(p.critic_rate, done))
        set_rate(ahead, faded(p.generator_rate, done))
        with torch.no_grad():
            fake = fake_rows(generator(torch.randn(p.batch, p.latent)), sizes)
        trainer.step(rows[trainer.sample(first, count, rate)], fake)
        for _ in range(p.generator_steps):
            logits = generator(torch.randn(p.batch, p.latent))
            loss = F.softplus(-trainer.critic(fake_rows(logits, sizes))).mean()
            loss = loss + pull_to_margins(logits, sizes, margins)
            if p.proximal:
                loss = loss + p.proximal / 2 * sum(
                    ((q - shared[n]) ** 2).sum() for n, q in generator.named_parameters()
                )
            ahead.zero_grad()
            loss.backward()
            ahead.step()
            mean.update_parameters(generator)
    return plain(mean.module), plain(trainer.critic)
