"""``dp-gan``'s ``summed`` rounds at the coordinator: its networks and fakes for :mod:`medsynx.generators.gan_coordinator`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx import codec
from medsynx.generators import dp_gan_sum as summed
from medsynx.generators import gan_coordinator
from medsynx.generators.base import Arrays, State, Total
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import Generator, fake_rows, pull_to_margins, tensors
from medsynx.generators.gan_coordinator import under
from medsynx.study import Study


def learn(study: Study, p: Parameters, state: State, total: Total) -> Arrays:
    """The next state's arrays.

    The sum is divided by the number of patients a batch is expected to hold (public: the rate times the noised count of the first step); fakes
    give their own gradient, clipped alike.
    """
    sizes, arrays = codec.sizes(study), state.arrays
    width = sum(sizes)
    generator = Generator(p.latent, p.hidden, width)
    generator.load_state_dict(tensors(under(arrays, summed.SERVER)))
    layers = summed.critic_of(arrays, width, p.critic_hidden)
    critic = [nn.Parameter(torch.from_numpy(layer.astype(np.float32))) for layer in layers]
    margins = torch.tensor(state.facts["margins"])

    with torch.no_grad():
        fakes = fake_rows(generator(torch.randn(p.batch, p.latent)), sizes).numpy().astype(np.float64)
    unit, expected = p.clip_norm / summed.NORM, p.sample_rate * float(state.facts["patients"])
    real = total.arrays["sum"] * (unit / expected)
    fake = summed.clipped_sum(layers, fakes, p.clip_norm, real=False) * (unit / p.batch)

    def loss() -> Tensor:
        logits = generator(torch.randn(p.batch, p.latent))
        judged = _judged([q.detach() for q in critic], fake_rows(logits, sizes))
        return F.softplus(-judged).mean() + pull_to_margins(logits, sizes, margins)

    gradient = summed.split(real + fake, width, p.critic_hidden)
    rounds = int(state.facts["rounds"])
    out = gan_coordinator.learn(p, arrays, rounds, p.exchanges, generator, critic, gradient, loss)
    return out | {f"{summed.CRITIC}{k}": q.detach().numpy() for k, q in enumerate(critic)}


def _judged(critic: list[Tensor], rows: Tensor) -> Tensor:
    for layer in critic[:-1]:
        rows = F.leaky_relu(F.linear(rows, layer[:, :-1], layer[:, -1]), summed.SLOPE)
    return F.linear(rows, critic[-1][:, :-1], critic[-1][:, -1])
