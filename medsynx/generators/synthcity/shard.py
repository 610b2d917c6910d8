"""Training Synthcity's networks at a site: its modules, our loop. Importing this imports Synthcity, which takes seconds.

``tvae`` and ``ddpm``: every gradient of the whole network is clipped and noised, so all of its weights may leave. ``ctgan`` and ``adsgan``: only the
critic meets patients, with noise, and it stays; the generator sees the critic alone. Synthcity's own loops, encoders, samplers, early stopping
and seeds are not used; neither is adsgan's identifiability penalty, which would show real rows to the generator.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx import codec
from medsynx.generators.base import Arrays, Patients
from medsynx.generators.dp_gan_networks import plain
from medsynx.generators.dpsgd import PatientSampler, PrivateTrainer, load
from medsynx.generators.synthcity.parameters import Shard
from medsynx.plan import PricedStep
from medsynx.study import Study

with redirect_stdout(sys.stderr):  # KeOps, which comes with it, greets where scripts read JSON
    from synthcity.plugins.core.models.mlp import MLP
    from synthcity.plugins.core.models.tabular_ddpm.gaussian_multinomial_diffsuion import get_beta_schedule
    from synthcity.plugins.core.models.tabular_ddpm.modules import DiffusionModel
    from synthcity.plugins.core.models.vae import Decoder, Encoder

TEMPERATURE = 0.7  #: of the Gumbel softmax
CPU = torch.device("cpu")


class Vae(nn.Module):
    """Synthcity's encoder and decoder as one network, so that a patient's gradient is clipped over both."""

    def __init__(self, width: int, p: Shard) -> None:
        super().__init__()
        common = {"n_layers_hidden": p.layers, "n_units_hidden": p.hidden, "nonlin": "leaky_relu"}
        plainly = {"batch_norm": False, "dropout": 0, "device": CPU}
        self.encoder = Encoder(width, p.latent, **common, **plainly)
        self.decoder = Decoder(p.latent, width, residual=True, **common, **plainly)

    def forward(self, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, width) and (rows, latent) to logits, mean and log variance."""
        mean, log_variance = self.encoder(rows)
        log_variance = log_variance.clamp(-8, 8)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def network(p: Shard, width: int) -> nn.Module:
    """What is averaged over the sites."""
    if p.plugin == "tvae":
        return Vae(width, p)
    if p.plugin == "ddpm":
        body = {"n_units_hidden": p.hidden, "n_layers_hidden": p.layers, "dropout": 0.0, "device": CPU}
        return DiffusionModel(width, p.hidden, model_params=body)
    return MLP(
        p.latent,
        width,
        n_layers_hidden=p.layers,
        n_units_hidden=p.hidden,
        nonlin="relu",
        dropout=0,
        residual=True,
        device=CPU,
    )


def critic(p: Shard, width: int) -> nn.Module:
    """One-hot row to one logit: positive for real."""
    return MLP(width, 1, n_layers_hidden=p.layers, n_units_hidden=p.hidden, nonlin="leaky_relu", dropout=0, device=CPU)


def keep_probability(timesteps: int) -> Tensor:
    """Chance that a cell is still its own value at each timestep: the running product over Synthcity's cosine schedule."""
    return torch.tensor(np.cumprod(1 - get_beta_schedule("cosine", timesteps)), dtype=torch.float32)


def blocks(rows: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """One tensor a column."""
    return list(rows.split(list(sizes), dim=1))


def cross_entropy(logits: Tensor, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Of each row, summed over columns."""
    pairs = zip(blocks(logits, sizes), blocks(rows, sizes), strict=True)
    return torch.stack([-(real * F.log_softmax(guess, dim=1)).sum(1) for guess, real in pairs]).sum(0)


def fake_rows(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A differentiable one-hot draw of each column (straight-through Gumbel softmax)."""
    return torch.cat([F.gumbel_softmax(b, TEMPERATURE, hard=True) for b in blocks(logits, sizes)], dim=1)


def vae_loss(p: Shard, sizes: tuple[int, ...], net: nn.Module, rows: Tensor) -> Tensor:
    """The negative evidence bound of each row (Kingma and Welling 2014)."""
    logits, mean, log_variance = net(rows, torch.randn(len(rows), p.latent))
    apart = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    return cross_entropy(logits, rows, sizes) + apart


def ddpm_loss(p: Shard, sizes: tuple[int, ...], net: nn.Module, rows: Tensor) -> Tensor:
    """How badly each noised row is recognised (Austin et al. 2021, the auxiliary loss of multinomial diffusion)."""
    t = torch.randint(0, p.timesteps, (len(rows),))
    stays = torch.rand(len(rows), len(sizes)) < keep_probability(p.timesteps)[t][:, None]
    noised = [
        torch.where(stays[:, j, None], block, F.one_hot(torch.randint(0, k, (len(rows),)), k).float())
        for j, (k, block) in enumerate(zip(sizes, blocks(rows, sizes), strict=True))
    ]
    return cross_entropy(net(torch.cat(noised, dim=1), t), rows, sizes)


def train(
    study: Study, p: Shard, priced: PricedStep, weights: Arrays, patients: Patients, keep: Arrays
) -> tuple[Arrays, Arrays]:
    """One round at one site.

    Args:
        weights: the shared network.
        keep: this site's critic of the round before, or empty.

    Returns:
        The trained network, and the critic for ``ctgan`` and ``adsgan``; float32 by name.
    """
    assert priced.step.sampling is not None
    sizes, rate, steps = codec.sizes(study), priced.step.sampling.rate, priced.step.sampling.iterations
    shared = load(network(p, sum(sizes)), weights)
    private = load(critic(p, sum(sizes)), keep) if keep else critic(p, sum(sizes))
    # Synthcity's constructors seed torch with 0; what follows (fakes, latent noise, timesteps) is seeded anew. Privacy noise is SecretNoise's.
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    sampler, codes = PatientSampler(patients), patients.codes
    settings: dict[str, Any] = {"noise_multiplier": priced.noise_multiplier, "clip_norm": p.clip_norm, "batch": p.batch}

    def batch() -> Tensor:
        return torch.from_numpy(codec.to_onehot(codes[sampler.sample(rate)], study))

    if p.plugin in ("tvae", "ddpm"):
        loss = vae_loss if p.plugin == "tvae" else ddpm_loss
        trainer = PrivateTrainer(shared, learning_rate=p.learning_rate, **settings)
        for _ in range(steps):
            trainer.step(batch(), lambda net, rows: loss(p, sizes, net, rows))
        return trainer.weights(), {}

    trainer = PrivateTrainer(private, learning_rate=p.learning_rate, betas=(0.5, 0.9), **settings)
    ahead = torch.optim.Adam(shared.parameters(), lr=p.learning_rate, betas=(0.5, 0.9))

    def fakes(rows: int) -> Tensor:
        return fake_rows(shared(torch.randn(rows, p.latent)), sizes)

    def on_rows(net: nn.Module, rows: Tensor) -> Tensor:
        return F.softplus(-net(rows))[:, 0]

    def on_fakes(net: nn.Module) -> Tensor:
        return F.softplus(net(fake)).mean()

    for number in range(1, steps + 1):
        with torch.no_grad():
            fake = fakes(p.batch)
        trainer.step(batch(), on_rows, on_fakes)
        if number % p.generator_every == 0:
            ahead.zero_grad()
            F.softplus(-trainer.network(fakes(2 * p.batch))).mean().backward()
            ahead.step()
    return plain(shared), trainer.weights()
