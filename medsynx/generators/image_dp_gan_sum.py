"""``image-dp-gan``'s mode ``summed``: clipped gradients of the public critic as bounded integers at a site, and the coordinator's half of a round.

A patient's gradient is computed alone, in a batch of one, so that its integers depend on nobody else to the last bit. It is scaled to
:data:`NORM` units at most and cut to integers towards zero; one whose integers are longer all the same is left out: the bound is exact whatever
the critic. Sums of integers are exact.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medsynx.generators import gan_coordinator
from medsynx.generators.base import Arrays, ImagePatients, State, Total
from medsynx.generators.dp_gan_networks import plain, seed_fakes, tensors
from medsynx.generators.dp_gan_sum import CRITIC, MEAN, NORM, SERVER
from medsynx.generators.gan_coordinator import named, under
from medsynx.generators.image_dp_gan import Parameters
from medsynx.generators.image_dp_gan_networks import Fakes, make_critic, make_generator, records_of, settings
from medsynx.generators.image_networks import device
from medsynx.plan import PricedStep
from medsynx.study import Study


def begin(study: Study, generator: Arrays) -> Arrays:
    """The first state of the training: a public draw of the critic, the generator, and its running mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(study.digest[16:32], 16))
        critic = plain(make_critic(study))
    return named(critic, CRITIC) | named(generator, SERVER) | named(generator, MEAN)


def clipped_sum(critic: nn.Module, rows: Tensor, clip_norm: float, *, real: bool) -> NDArray[np.int64]:
    """Sum over rows of the loss's clipped gradients, in units of ``clip_norm / NORM``.

    Each row moves the sum by :data:`NORM` units at most in L2, whatever it and the critic hold: one for which that fails is left out.

    Args:
        rows: pixels and one-hot class, (rows, width).
        real: log-likelihood of being real, or of being fake.
    """
    parameters = list(critic.parameters())
    total = np.zeros(sum(q.numel() for q in parameters), np.int64)
    for row in rows:
        logit = critic(row[None].clone())  # alone, and where it lies in memory tells nothing of the others
        found = torch.autograd.grad(F.softplus(-logit if real else logit).sum(), parameters)
        total += _whole(torch.cat([g.flatten() for g in found]).double().numpy(), clip_norm)
    return total


def _whole(gradient: NDArray[np.float64], clip_norm: float) -> NDArray[np.int64]:
    """One row's gradient in units; zeros for one that is no finite number."""
    with np.errstate(all="ignore"):
        scale = min(1.0, clip_norm / max(float(np.linalg.norm(gradient)), 1e-300)) * NORM / clip_norm
        units = np.trunc(gradient * scale)
        bounded = float(units @ units) <= NORM**2  # whole numbers below 2**53: exact; false for NaN
    return units.astype(np.int64) if bounded else np.zeros(len(units), np.int64)


def sampled_sum(study: Study, priced: PricedStep, arrays: Arrays, patients: ImagePatients) -> NDArray[np.int64]:
    """One site's part of a round: a Poisson sample of its patients, each lending one of its images.

    Raises ValueError when the state holds another network.
    """
    from medsynx.generators.dpsgd import PatientSampler

    assert priced.step.sampling is not None
    torch.set_num_threads(1)
    critic = make_critic(study)
    sent = under(arrays, CRITIC)
    if {n: a.shape for n, a in sent.items()} != {n: tuple(t.shape) for n, t in critic.state_dict().items()}:
        raise ValueError("the critic does not have the study's shape")
    critic.load_state_dict(tensors(sent))
    joined = PatientSampler(patients).sample(priced.step.sampling.rate)
    rows = records_of(study, patients, "cpu")(joined)
    return clipped_sum(critic, rows, settings(study).clip_norm, real=True)


def learn(study: Study, p: Parameters, state: State, total: Total) -> Arrays:
    """The next state's arrays.

    The sum is divided by the number of patients a batch is expected to hold (public: the rate times the noised count of the first step); fakes
    give their own gradient, clipped alike.
    """
    seed_fakes()
    arrays, facts = state.arrays, state.facts
    generator, fakes = make_generator(study, under(arrays, SERVER)), Fakes(study, facts)
    critic = make_critic(study)
    critic.load_state_dict(tensors(under(arrays, CRITIC)))
    with torch.no_grad():
        fake, _ = fakes(generator.to(device()))
    unit, expected = p.clip_norm / NORM, p.sample_rate * float(facts["patients"])
    on_fakes = clipped_sum(critic, fake.cpu(), p.clip_norm, real=False) * (unit / p.batch)
    gradient = total.arrays["sum"] * (unit / expected) + on_fakes
    parameters = list(critic.to(device()).parameters())
    parts = np.split(gradient, np.cumsum([q.numel() for q in parameters])[:-1])
    shaped = [g.reshape(tuple(q.shape)) for g, q in zip(parts, parameters, strict=True)]

    def loss() -> Tensor:
        rows, further = fakes(generator)
        return F.softplus(-critic(rows)).mean() + further

    rounds = int(facts["rounds"])
    out = gan_coordinator.learn(p, arrays, rounds, p.exchanges, generator, parameters, shaped, loss)
    return out | named(plain(critic), CRITIC)
