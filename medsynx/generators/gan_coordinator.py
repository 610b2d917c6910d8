"""The coordinator's half of a ``summed`` round of any of our GANs: one step of the public critic, some of the generator. Post-processing of a noised
sum. Between rounds everything is in the state: both networks, the running mean, and the optimisers' moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynx.generators.averaging import BETAS, OWN
from medsynx.generators.base import Arrays
from medsynx.generators.dp_gan_networks import faded, plain, tensors
from medsynx.generators.dp_gan_sum import MEAN, SERVER
from medsynx.generators.gan_parameters import GanParameters

MOMENTS = ("exp_avg", "exp_avg_sq")


def under(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def named(arrays: Arrays, prefix: str) -> Arrays:
    """Inverse of :func:`under`."""
    return {prefix + n: a for n, a in arrays.items()}


def learn(
    p: GanParameters,
    arrays: Arrays,
    rounds: int,
    of: int,
    generator: nn.Module,
    critic: list[nn.Parameter],
    gradient: list[NDArray[np.float64]],
    loss: Callable[[], Tensor],
) -> Arrays:
    """The next state's arrays but for the critic, which is moved in place.

    Args:
        arrays: of the state.
        rounds: how many of them were before this one, ``of`` how many.
        generator, critic: as the state has them.
        gradient: of each of the critic's parameters: the patients' noised mean and the fakes'.
        loss: the generator's, of a fresh batch, by the critic as it then is.
    """
    done, turns = rounds / of, rounds // p.generator_every
    ahead = torch.optim.Adam(generator.parameters(), lr=faded(p.generator_rate, done), betas=BETAS)
    judge = torch.optim.AdamW(critic, lr=faded(p.critic_rate, done), betas=BETAS, weight_decay=p.critic_decay)
    _resume(ahead, arrays, f"{OWN}ahead.", turns * p.generator_steps)
    _resume(judge, arrays, f"{OWN}judge.", rounds)
    for q, found in zip(critic, gradient, strict=True):
        q.grad = torch.from_numpy(found.astype(np.float32)).to(q.device)
    judge.step()
    mean = under(arrays, MEAN)
    for _ in range(p.generator_steps if (rounds + 1) % p.generator_every == 0 else 0):
        ahead.zero_grad()
        loss().backward()
        ahead.step()
        mean = {n: (p.average * mean[n] + (1 - p.average) * a).astype(np.float32) for n, a in plain(generator).items()}
    out = named(plain(generator), SERVER) | named(mean, MEAN)
    return out | _moments(ahead, f"{OWN}ahead.") | _moments(judge, f"{OWN}judge.")


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> Arrays:
    held = [q for group in optimizer.param_groups for q in group["params"]]
    return {
        f"{prefix}{k}.{m}": optimizer.state[q][m].cpu().numpy()
        for k, q in enumerate(held)
        if q in optimizer.state
        for m in MOMENTS
    }


def _resume(optimizer: torch.optim.Optimizer, arrays: Arrays, prefix: str, steps: int) -> None:
    """Adam's moments as the last round left them."""
    if not steps:
        return
    for k, q in enumerate(q for group in optimizer.param_groups for q in group["params"]):
        moments = tensors({m: arrays[f"{prefix}{k}.{m}"] for m in MOMENTS})
        optimizer.state[q] = {"step": torch.tensor(float(steps)), **{m: t.to(q.device) for m, t in moments.items()}}
