"""Training a GAN at a site: Opacus on the critic, secret noise, nothing chosen by looking at real rows.

One critic step: every patient joins the batch with probability ``sample_rate`` and lends one record at random; each patient's gradient is
clipped, the sum is noised (Abadi et al. 2016) and divided by a public constant; then the gradient on fakes is added as it is, because fakes
come from the generator, which has seen no patient but through earlier noised steps. Everything the generator learns is post-processing.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medsynx import codec
from medsynx.generators.base import Arrays, Patients, State
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import (
    BETAS,
    Generator,
    faded,
    fake_rows,
    make_critic,
    plain,
    pull_to_margins,
    set_rate,
    tensors,
)
from medsynx.plan import PricedStep
from medsynx.study import Study

# torch tells that Opacus' hooks fire on a first layer whose input needs no gradient; that is how they are meant here.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


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
            p.grad = (p.summed_grad + noise).view_as(p)


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
