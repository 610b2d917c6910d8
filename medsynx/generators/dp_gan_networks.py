"""The two networks of ``dp-gan`` and what the generator learns from. Shared by sites and coordinator; sees no patient."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx.generators.base import Arrays
from medsynx.generators.dp_gan_sum import SLOPE

PULL = 3.0  #: weight of the single columns in the generator's loss


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
    """One-hot row to one logit: positive for real. Weights of every layer are as large as its inputs' number asks for (He et al. 2015)."""
    layers = [nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, SLOPE)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.LeakyReLU(SLOPE), layers[1], nn.LeakyReLU(SLOPE), layers[2])


def fake_rows(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A one-hot draw of each column's softmax, (rows, width), with ReinMax's gradient (Liu et al. 2023, "Bridging discrete and
    backpropagation", algorithm 2, temperature 1): accurate to the second order where straight-through estimates are to the first."""
    blocks = []
    for block in logits.split(list(sizes), dim=1):
        noise = -torch.empty_like(block).exponential_().clamp_min(1e-30).log()
        drawn = F.one_hot((block.detach() + noise).argmax(dim=1), block.shape[1]).to(block.dtype)
        middle = ((drawn + block.detach().softmax(dim=1)) / 2).clamp_min(1e-10).log()
        surrogate = 2 * (middle - block.detach() + block).softmax(dim=1) - block.softmax(dim=1) / 2
        blocks.append(drawn + (surrogate - surrogate.detach()))
    return torch.cat(blocks, dim=1)


def pull_to_margins(logits: Tensor, sizes: tuple[int, ...], margins: Tensor) -> Tensor:
    """Cross entropy from the measured single columns ``margins`` (width,) to those of a batch of fakes, times :data:`PULL`."""
    mean = torch.cat([b.softmax(dim=1) for b in logits.split(list(sizes), dim=1)], dim=1).mean(dim=0)
    return -PULL * (margins * mean.clamp_min(1e-8).log()).sum()


def faded(rate: float, done: float) -> float:
    """A learning rate that is held for the first half of the training and falls to 0 in the second. ``done``: share of it that is over."""
    return rate * min(1.0, 2 * (1 - done))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def seed_fakes() -> None:
    """Seed torch from the operating system, for what is no privacy noise, and keep it to the threads it was given."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.manual_seed(int.from_bytes(os.urandom(4), "big"))


def plain(module: nn.Module) -> Arrays:
    """A network's weights as float32 arrays by name."""
    return {n: t.detach().cpu().numpy().astype(np.float32) for n, t in module.state_dict().items()}


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The inverse of :func:`plain`; copies."""
    return {n: torch.from_numpy(np.array(a, np.float32)) for n, a in arrays.items()}
