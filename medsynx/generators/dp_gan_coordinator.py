"""The coordinator's half of a ``summed`` round: one step of the public critic, some of the generator. Post-processing of a noised sum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx import codec
from medsynx.generators import dp_gan_sum as summed
from medsynx.generators.averaging import BETAS
from medsynx.generators.base import Arrays, State, Total
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import Generator, faded, fake_rows, plain, pull_to_margins, tensors
from medsynx.study import Study

MOMENTS = ("exp_avg", "exp_avg_sq")


def learn(study: Study, p: Parameters, state: State, total: Total) -> Arrays:
    """The next state's arrays.

    The sum is divided by the number of patients a batch is expected to hold (public: the rate times the noised count of the first step); fakes
    give their own gradient, clipped alike.
    """
    sizes, arrays = codec.sizes(study), state.arrays
    width, rounds = sum(sizes), int(state.facts["rounds"])
    generator = Generator(p.latent, p.hidden, width)
    generator.load_state_dict(
        tensors({n.removeprefix(summed.SERVER): a for n, a in arrays.items() if n.startswith(summed.SERVER)})
    )
    layers = summed.critic_of(arrays, width, p.critic_hidden)
    critic = [nn.Parameter(torch.from_numpy(layer.astype(np.float32))) for layer in layers]
    done = rounds / p.exchanges
    ahead = torch.optim.Adam(generator.parameters(), lr=faded(p.generator_rate, done), betas=BETAS)
    judge = torch.optim.AdamW(critic, lr=faded(p.critic_rate, done), betas=BETAS, weight_decay=p.critic_decay)
    _resume(ahead, arrays, "server.ahead.", rounds * p.generator_steps)
    _resume(judge, arrays, "server.judge.", rounds)

    with torch.no_grad():
        fakes = fake_rows(generator(torch.randn(p.batch, p.latent)), sizes).numpy().astype(np.float64)
    unit, expected = p.clip_norm / summed.NORM, p.sample_rate * float(state.facts["patients"])
    real = total.arrays["sum"] * (unit / expected)
    fake = summed.clipped_sum(layers, fakes, p.clip_norm, real=False) * (unit / p.batch)
    for q, gradient in zip(critic, summed.split(real + fake, width, p.critic_hidden), strict=True):
        q.grad = torch.from_numpy(gradient.astype(np.float32))
    judge.step()
    frozen = [q.detach() for q in critic]

    margins = torch.tensor(state.facts["margins"])
    mean = {n: np.array(a) for n, a in summed.published(arrays).items()}
    for _ in range(p.generator_steps):
        logits = generator(torch.randn(p.batch, p.latent))
        loss = F.softplus(-_judged(frozen, fake_rows(logits, sizes))).mean() + pull_to_margins(logits, sizes, margins)
        ahead.zero_grad()
        loss.backward()
        ahead.step()
        mean = {n: (p.average * mean[n] + (1 - p.average) * a).astype(np.float32) for n, a in plain(generator).items()}
    out: Arrays = {f"{summed.CRITIC}{k}": q.detach().numpy() for k, q in enumerate(critic)}
    out |= {summed.SERVER + n: a for n, a in plain(generator).items()}
    out |= {summed.MEAN + n: a for n, a in mean.items()}
    return out | _moments(ahead, "server.ahead.") | _moments(judge, "server.judge.")


def _judged(critic: list[Tensor], rows: Tensor) -> Tensor:
    for layer in critic[:-1]:
        rows = F.leaky_relu(F.linear(rows, layer[:, :-1], layer[:, -1]), summed.SLOPE)
    return F.linear(rows, critic[-1][:, :-1], critic[-1][:, -1])


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> Arrays:
    held = enumerate(q for group in optimizer.param_groups for q in group["params"])
    return {f"{prefix}{k}.{m}": optimizer.state[q][m].numpy() for k, q in held for m in MOMENTS}


def _resume(optimizer: torch.optim.Optimizer, arrays: Arrays, prefix: str, steps: int) -> None:
    """Adam's moments as the last round left them."""
    if not steps:
        return
    for k, q in enumerate(q for group in optimizer.param_groups for q in group["params"]):
        moments = tensors({m: arrays[f"{prefix}{k}.{m}"] for m in MOMENTS})
        optimizer.state[q] = {"step": torch.tensor(float(steps)), **moments}
