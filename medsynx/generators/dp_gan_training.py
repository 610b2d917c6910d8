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
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx import codec
from medsynx.generators.base import Arrays, Patients
from medsynx.generators.dp_gan import Parameters
from medsynx.plan import PricedStep
from medsynx.study import Study

TEMPERATURE = 0.7  #: of the Gumbel softmax

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
    """Opacus' optimiser with :class:`SecretNoise` in place of torch's generator."""

    def __init__(self, optimizer: torch.optim.Optimizer, secret: SecretNoise, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.secret = secret

    def add_noise(self) -> None:
        """Noise of ``noise_multiplier * max_grad_norm`` on the summed clipped gradients."""
        for p in self.params:
            noise = self.secret.normal(tuple(p.shape)) * (self.noise_multiplier * self.max_grad_norm)
            p.grad = (p.summed_grad + noise).view_as(p)


class Generator(nn.Module):
    """``z`` to one block of logits a column."""

    def __init__(self, latent: int, hidden: int, width: int) -> None:
        super().__init__()
        self.add_module("in", nn.Linear(latent, hidden))
        self.norm1, self.mid = nn.LayerNorm(hidden), nn.Linear(hidden, hidden)
        self.norm2, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        """(rows, latent) to (rows, width)."""
        h = F.relu(self.norm1(self.get_submodule("in")(z)))
        out: Tensor = self.out(F.relu(self.norm2(self.mid(h))))
        return out


def make_critic(width: int, hidden: int) -> nn.Sequential:
    """One-hot row to one logit: positive for real."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
    )


def fake_rows(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A differentiable one-hot draw of each column (straight-through Gumbel softmax)."""
    return torch.cat(
        [F.gumbel_softmax(block, TEMPERATURE, hard=True) for block in logits.split(list(sizes), dim=1)], dim=1
    )


class CriticTrainer:
    """A critic under DP-SGD.

    Args:
        noise_multiplier: noise standard deviation / clip norm; 0 switches noise off (tests).
    """

    def __init__(self, width: int, p: Parameters, noise_multiplier: float) -> None:
        self.secret = SecretNoise()
        self.critic = GradSampleModule(make_critic(width, p.hidden), loss_reduction="mean")
        self.parameters = [q for q in self.critic.parameters() if q.requires_grad]
        self.optimizer = SecretNoiseOptimizer(
            torch.optim.Adam(self.parameters, lr=p.learning_rate, betas=(0.5, 0.9)),
            self.secret,
            noise_multiplier=noise_multiplier,
            max_grad_norm=p.clip_norm,
            expected_batch_size=p.batch,
            loss_reduction="mean",
        )

    def sample(self, first: NDArray[np.int64], count: NDArray[np.int64], rate: float) -> NDArray[np.int64]:
        """Rows of a Poisson sample of patients, one row a patient. ``first`` and ``count`` say where a patient's rows lie."""
        joined = np.flatnonzero(self.secret.uniform(len(first)) <= rate)
        if not len(joined):
            return joined
        lent = np.floor((1 - self.secret.uniform(len(joined))) * count[joined]).astype(np.int64)
        return first[joined] + lent

    def step(self, real: Tensor, fake: Tensor) -> None:
        """One noisy step. ``real`` (patients in the batch, width) may be empty: the step is then noise and fakes alone."""
        self.optimizer.zero_grad(set_to_none=True)
        self.critic.enable_hooks()
        if len(real):
            F.softplus(-self.critic(real)).mean().backward()
        else:
            for q in self.parameters:
                q.grad_sample = torch.zeros((0, *q.shape))
        self.optimizer.pre_step()  # clip each patient, add noise, divide by the public batch size
        self.critic.disable_hooks()
        on_fakes = torch.autograd.grad(F.softplus(self.critic(fake)).mean(), self.parameters)
        for q, gradient in zip(self.parameters, on_fakes, strict=True):
            q.grad = q.grad + gradient
        self.optimizer.original_optimizer.step()


def train(
    study: Study, p: Parameters, priced: PricedStep, weights: Arrays, patients: Patients, keep: Arrays
) -> tuple[Arrays, Arrays]:
    """One round at one site.

    Args:
        weights: the shared generator.
        keep: this site's critic of the round before, or empty.

    Returns:
        The trained generator and the critic, float32 by name.
    """
    assert priced.step.sampling is not None
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # fakes only; privacy noise is SecretNoise's
    sizes = codec.sizes(study)
    order = np.argsort(patients.patient, kind="stable")
    rows = torch.from_numpy(codec.to_onehot(patients.codes[order], study))
    count = np.bincount(patients.patient) if len(order) else np.zeros(0, np.int64)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64) if len(count) else np.zeros(0, np.int64)

    generator = Generator(p.latent, p.hidden, sum(sizes))
    generator.load_state_dict({n: torch.from_numpy(np.array(a, np.float32)) for n, a in weights.items()})
    shared = {n: q.detach().clone() for n, q in generator.named_parameters()}
    trainer = CriticTrainer(sum(sizes), p, priced.noise_multiplier)
    if keep:
        trainer.critic.load_state_dict({n: torch.from_numpy(a) for n, a in keep.items()})
    ahead = torch.optim.Adam(generator.parameters(), lr=p.learning_rate, betas=(0.5, 0.9))
    for number in range(1, priced.step.sampling.iterations + 1):
        with torch.no_grad():
            fake = fake_rows(generator(torch.randn(p.batch, p.latent)), sizes)
        trainer.step(rows[trainer.sample(first, count, priced.step.sampling.rate)], fake)
        if number % p.generator_every == 0:
            loss = F.softplus(-trainer.critic(fake_rows(generator(torch.randn(2 * p.batch, p.latent)), sizes))).mean()
            if p.proximal:
                loss = loss + p.proximal / 2 * sum(
                    ((q - shared[n]) ** 2).sum() for n, q in generator.named_parameters()
                )
            ahead.zero_grad()
            loss.backward()
            ahead.step()
    return _plain(generator), _plain(trainer.critic)


def _plain(module: nn.Module) -> Arrays:
    return {n: t.detach().numpy().astype(np.float32) for n, t in module.state_dict().items()}
