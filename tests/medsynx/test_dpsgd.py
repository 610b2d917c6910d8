"""DP-SGD for any network: one promise a test."""

import numpy as np
import pytest
import torch
from torch import nn

from medsynx.generators.base import Patients
from medsynx.generators.dpsgd import PatientSampler, PrivateTrainer, load

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, CLIP, BATCH = 6, 0.5, 32


def trainer(noise: float) -> PrivateTrainer:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 1))
    return PrivateTrainer(net, noise_multiplier=noise, clip_norm=CLIP, batch=BATCH, learning_rate=1e-3)


def noised_sum(t: PrivateTrainer, real: torch.Tensor) -> torch.Tensor:
    """The sum that was clipped and noised, as it is before anything public is added."""
    seen = []
    t.optimizer.attach_step_hook(
        lambda o: seen.append(torch.cat([q.grad.flatten().clone() for q in t.parameters]) * BATCH)
    )
    t.step(real, lambda net, rows: net(rows)[:, 0] ** 2, lambda net: 100 * net(torch.ones(2, WIDTH)).mean())
    return seen[0]


def rows(n: int) -> torch.Tensor:
    return torch.eye(WIDTH)[torch.arange(n) % WIDTH]


def test_one_patient_moves_the_sum_by_the_clip_norm_and_the_divisor_is_public():
    base = noised_sum(trainer(0.0), rows(12))
    moved = noised_sum(trainer(0.0), torch.cat([rows(12), 1e3 * rows(1)])) - base
    assert moved.norm() == pytest.approx(CLIP, rel=1e-3)
    assert torch.allclose(noised_sum(trainer(0.0), rows(24)), 2 * base, atol=1e-5)


def test_weights_that_overflow_on_one_value_do_not_tell_who_has_it():
    """A patient whose gradient is no number moves the sum by the clip norm at most, and the site has weights to send as without it."""
    sums = []
    for real in (rows(5), rows(6)):  # the sixth alone has the last value
        t = trainer(0.0)
        with torch.no_grad():
            t.network._module[0].weight[:, WIDTH - 1] = 3e38
            t.network._module[2].weight.fill_(10.0)
        t.optimizer.attach_step_hook(
            lambda _, t=t: sums.append(torch.cat([q.grad.flatten().clone() for q in t.parameters]) * BATCH)
        )
        t.step(real, lambda net, r: net(r)[:, 0] ** 2)
        assert all(np.isfinite(a).all() for a in t.weights().values())
    assert (sums[1] - sums[0]).norm() <= CLIP * (1 + 1e-4)


def test_noise_has_its_size_meets_empty_batches_and_no_seed_reaches_it():
    nobody = torch.zeros((0, WIDTH))
    draws = [noised_sum(trainer(3.0), nobody) for _ in range(160)]  # each trainer seeds torch alike
    assert abs(torch.cat(draws).std() / (3 * CLIP) - 1) < 0.05, "seven standard deviations, of 10,400 numbers"
    assert not torch.allclose(draws[0], draws[1], atol=0.1)


def test_a_public_loss_is_added_after_the_noise():
    """Nothing but the public loss differs: it moves the network."""
    quiet, moved = trainer(0.0), trainer(0.0)
    before = quiet.weights()
    quiet.step(torch.zeros((0, WIDTH)), lambda net, r: net(r)[:, 0])
    moved.step(torch.zeros((0, WIDTH)), lambda net, r: net(r)[:, 0], lambda net: net(torch.ones(2, WIDTH)).mean())
    assert all(np.array_equal(quiet.weights()[n], a) for n, a in before.items())
    assert not all(np.array_equal(moved.weights()[n], a) for n, a in before.items())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH, track_running_stats=False)])
def test_batch_statistics_are_refused(layer):
    with pytest.raises(ValueError, match="statistics"):
        PrivateTrainer(nn.Sequential(layer), noise_multiplier=1, clip_norm=1, batch=8, learning_rate=1e-3)


def test_buffers_are_refused():
    net = nn.Linear(WIDTH, 1)
    net.register_buffer("seen", torch.zeros(1))
    with pytest.raises(ValueError, match="buffers"):
        PrivateTrainer(net, noise_multiplier=1, clip_norm=1, batch=8, learning_rate=1e-3)


def test_batches_are_poisson_samples_of_patients():
    """Each patient at most once, sizes vary as a binomial's, and every record of a patient gets its turn."""
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(300), 3))
    sampler = PatientSampler(Patients(np.zeros((900, 1), np.int64), patient))
    picked = [sampler.sample(0.1) for _ in range(800)]  # of fewer, one record in 900 may well be in none
    assert all(len(set(patient[p])) == len(p) for p in picked)
    sizes = np.array([len(p) for p in picked])
    assert abs(sizes.mean() - 30) < 2 and 0.6 < sizes.var() / 27 < 1.5
    assert len(set(np.concatenate(picked))) == 900
    assert len(PatientSampler(Patients(np.zeros((0, 1), np.int64), np.zeros(0, np.int64))).sample(0.5)) == 0


def test_weights_are_loaded_strictly():
    with pytest.raises(RuntimeError):
        load(nn.Linear(2, 1), {"weight": np.zeros((1, 2), np.float32)})
