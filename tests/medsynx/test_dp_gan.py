"""The GAN's privacy, one promise a test, and that it learns."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynx import codec
from medsynx.generators import get_family
from medsynx.generators.base import Patients, State, Total
from medsynx.generators.dp_gan import Parameters, initial_weights, shapes, to_onnx
from medsynx.generators.dp_gan_networks import Generator, fake_rows, make_critic
from medsynx.generators.dpsgd import SecretNoise
from medsynx.generators.gan_training import CriticTrainer
from medsynx.plan import PricedStep, Sampling
from medsynx.privacy import calibrate, dpsgd_event
from medsynx.samplers import open_sampler
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY, small_table

pytestmark = pytest.mark.filterwarnings("ignore")
P = Parameters(clip_norm=0.5, batch=32, hidden=16, latent=8)
WIDTH = 12
FAMILY = get_family("dp-gan")


def onehot(rows: int) -> torch.Tensor:
    return torch.eye(WIDTH)[torch.arange(rows) % WIDTH]


def trainer_of(noise_multiplier: float) -> CriticTrainer:
    return CriticTrainer(make_critic(WIDTH, P.critic_hidden), P, noise_multiplier)


def noised_gradient(trainer: CriticTrainer, real: torch.Tensor) -> torch.Tensor:
    """What leaves the clip-and-noise step: the real gradient as the optimiser has it before fakes are added, times the public batch size."""
    seen = []
    trainer.optimizer.attach_step_hook(
        lambda o: seen.append(torch.cat([q.grad.flatten().clone() for q in trainer.parameters]) * P.batch)
    )
    trainer.step(real, onehot(4))
    return seen[0]


def test_one_patient_moves_the_sum_by_the_clip_norm_at_most():
    trainer = trainer_of(0.0)
    state = {n: t.clone() for n, t in trainer.critic.state_dict().items()}
    many = noised_gradient(trainer, onehot(10))
    moves = []
    for patient in (onehot(1) * 1e4, -onehot(1) * 1e4, onehot(1), -onehot(3)[2:] * 1e3):
        other = trainer_of(0.0)
        other.critic.load_state_dict(state)
        moved = noised_gradient(other, torch.cat([onehot(10), patient])) - many
        assert moved.norm() <= P.clip_norm * (1 + 1e-3)
        moves.append(float(moved.norm()))
    assert max(moves) == pytest.approx(P.clip_norm, rel=1e-2), (
        "the bound is reached: the patients do count, and are clipped"
    )


def test_the_noise_has_the_stated_size_and_is_added_to_empty_batches_too():
    draws = torch.cat([noised_gradient(trainer_of(3.0), torch.zeros((0, WIDTH))) for _ in range(20)])
    assert abs(draws.std() / (3.0 * P.clip_norm) - 1) < 0.05 and abs(draws.mean()) < 0.1


def test_no_seed_reaches_the_noise():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(noised_gradient(trainer_of(3.0), torch.zeros((0, WIDTH))))
    assert not torch.allclose(draws[0], draws[1], atol=0.1)


def test_secret_noise_is_normal():
    """A false alarm in ten million runs; a standard deviation that is 5 % off is found."""
    from scipy.stats import kstest

    draws = SecretNoise().normal((500_000,)).numpy()
    assert kstest(draws, "norm").pvalue > 1e-7
    assert kstest(draws * 1.05, "norm").pvalue < 1e-7 > kstest(draws + 0.05, "norm").pvalue, "the test can tell"
    uniform = SecretNoise().uniform(500_000)
    assert uniform.min() > 0 and uniform.max() <= 1 and kstest(uniform, "uniform").pvalue > 1e-7


def test_batches_are_poisson_samples_of_patients():
    trainer, patients, rate = trainer_of(0.0), 400, 0.1
    count = np.full(patients, 3)
    first = np.arange(patients) * 3
    picked = [trainer.sample(first, count, rate) for _ in range(400)]
    for rows in picked:
        assert len(set(rows // 3)) == len(rows), "a patient lends one record"
    sizes = np.array([len(rows) for rows in picked])
    assert abs(sizes.mean() - patients * rate) < 2 and 0.7 < sizes.var() / (patients * rate * (1 - rate)) < 1.4, (
        "fixed-size batches would not vary"
    )
    assert set(np.concatenate(picked) % 3) == {0, 1, 2}


def test_the_normaliser_is_public():
    """Doubling the patients doubles the gradient: nothing divides by the private batch size."""
    a, b = trainer_of(0.0), trainer_of(0.0)
    b.critic.load_state_dict(a.critic.state_dict())
    one, two = noised_gradient(a, onehot(12)), noised_gradient(b, onehot(24))
    assert torch.allclose(two, 2 * one, atol=1e-4)


def test_the_critic_learns_forwards_and_keeps_the_gradient_on_fakes():
    """Real above fake after training, with noise on; and a step on an empty batch still moves the critic by the fakes."""
    torch.manual_seed(1)
    trainer = trainer_of(0.3)
    real, fake = onehot(12)[:6].repeat(8, 1), onehot(12)[6:].repeat(8, 1)
    for _ in range(150):
        trainer.step(real, fake)
    with torch.no_grad():
        assert (trainer.critic(real).mean() - trainer.critic(fake).mean()) > 1
    quiet = trainer_of(0.0)
    before = quiet.critic(fake).mean().item()
    for _ in range(20):
        quiet.step(torch.zeros((0, WIDTH)), fake)
    assert quiet.critic(fake).mean().item() < before - 0.05


@pytest.fixture(scope="module")
def study():
    raw = {
        **RAW_STUDY,
        "family": {
            "name": "dp-gan",
            "parameters": {"rounds": 2, "critic_steps": 100, "sample_rate": 0.2, "hidden": 48, "latent": 48},
        },
    }
    return parse_study(raw)


def records_of_few_patients(study):
    """Four patients whose rows are mixed up in the table; a record's first column tells whose it is."""
    patient = np.array([2, 0, 1, 0, 3, 2, 0, 0, 1, 0])
    codes = np.zeros((len(patient), len(codec.sizes(study))), np.int64)
    codes[:, 0], codes[:, 1] = patient, np.arange(len(patient)) % 2
    return Patients(codes, patient)


def started(study, patients=1000, sites=1):
    """A state after the columns were measured, all levels alike."""
    margins = np.concatenate([np.full(k, 1 / k) for k in codec.sizes(study)])
    facts = {"margins": margins.tolist(), "patients": float(patients), "sites": sites, "rounds": 0}
    return State(initial_weights(study), facts)


def spied_round(study, priced, patients, monkeypatch, keep=None):
    """One real round that also notes each critic step's real batch and noise, and the critic it starts with."""
    batches, noise, critics, step = [], set(), [], CriticTrainer.step

    def noting(self, real, fake):
        critics.append({n: t.clone().numpy() for n, t in self.critic.state_dict().items()})
        batches.append(real.clone())
        noise.add((self.optimizer.noise_multiplier, self.optimizer.max_grad_norm))
        step(self, real, fake)

    monkeypatch.setattr(CriticTrainer, "step", noting)
    out = FAMILY.contribute(study, priced, started(study), patients, keep or {})
    return out, batches, noise, critics[0]


def one_round(study, noise_multiplier, rate, iterations):
    step = replace(FAMILY.plan(study)[1], sampling=Sampling(rate, iterations))
    return PricedStep(step, noise_multiplier, dpsgd_event(noise_multiplier, rate, iterations))


def test_a_round_spends_what_was_priced_and_nothing_else(study, monkeypatch):
    """Noise, rate and number of steps are those of the priced step: what the ledger was charged for."""
    patients = Patients(np.zeros((500, len(codec.sizes(study))), np.int64), np.arange(500))
    _, batches, noise, _ = spied_round(study, one_round(study, 2.5, 0.3, 12), patients, monkeypatch)
    assert len(batches) == 12
    assert noise == {(2.5, FAMILY.parameters(study.family.parameters).clip_norm)}
    assert abs(np.mean([len(b) for b in batches]) - 150) < 25, "six standard deviations of the mean is 18"


def test_a_patient_lends_one_of_its_own_records_to_a_batch(study, monkeypatch):
    """At rate 1 every batch holds each patient once, however many rows it has and wherever they stand; all its records get their turn."""
    patients = records_of_few_patients(study)
    _, batches, _, _ = spied_round(study, one_round(study, 1.0, 1.0, 100), patients, monkeypatch)
    first = codec.sizes(study)[0]
    for real in batches:
        assert sorted(real[:, :first].argmax(1).tolist()) == [0, 1, 2, 3]
    lent = {tuple(row) for real in batches for row in real.tolist()}
    assert lent == {tuple(row) for row in codec.to_onehot(patients.codes, study).tolist()}


def test_only_the_generator_leaves_and_the_critic_returns(study, monkeypatch):
    patients = records_of_few_patients(study)
    priced = one_round(study, 1.0, 1.0, 3)
    out, _, _, _ = spied_round(study, priced, patients, monkeypatch)
    assert {n: a.shape for n, a in out.arrays.items()} == shapes(study)
    assert out.keep and all(a.dtype == np.float32 for a in (*out.arrays.values(), *out.keep.values()))
    monkeypatch.undo()
    _, _, _, resumed = spied_round(study, priced, patients, monkeypatch, out.keep)
    assert resumed.keys() == out.keep.keys() and all(np.array_equal(resumed[n], out.keep[n]) for n in resumed)


def test_a_site_without_patients_still_answers(study, monkeypatch):
    """Noise and fakes alone: whether a site has patients must not show as a failure."""
    nobody = Patients(np.zeros((0, len(codec.sizes(study))), np.int64), np.zeros(0, np.int64))
    out, batches, _, _ = spied_round(study, one_round(study, 1.0, 0.5, 3), nobody, monkeypatch)
    assert [len(b) for b in batches] == [0, 0, 0] and all(np.isfinite(a).all() for a in out.arrays.values())


def test_the_family_needs_no_torch():
    """The coordinator and the command line plan and export without it."""
    code = "import sys, medsynx.generators.dp_gan; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def federated(study, tables, noise=True):
    plan, state, keep = calibrate(study.privacy, FAMILY.plan(study)), State(), [{} for _ in tables]
    plan = plan if noise else plan.without_noise()
    while step := FAMILY.next_step(study, state):
        priced, outs = plan.find(step.name), []
        for k, codes in enumerate(tables):
            out = FAMILY.contribute(study, priced, state, Patients(codes, np.arange(len(codes))), keep[k])
            keep[k] = out.keep
            outs.append(out.arrays)
            if step.cargo == "model-update":
                assert {n: a.shape for n, a in out.arrays.items()} == shapes(study), (
                    "generator weights and nothing else"
                )
                assert not any(
                    np.array_equal(a, b) for a in out.arrays.values() for b in out.keep.values() if a.size > 1
                )
        total = {n: np.sum([o[n] for o in outs], axis=0) for n in outs[0]}
        if step.cargo == "model-update":
            total = {n: (a / len(outs)).astype(np.float32) for n, a in total.items()}
        state = FAMILY.combine(study, priced, state, Total(total, 0.0, len(outs)))
    artefact = FAMILY.export(study, state)
    return open_sampler(artefact.sampler, artefact.files, study).sample(8000, np.random.default_rng(0))


def independent(codes):
    rng = np.random.default_rng(5)
    return np.stack([rng.permutation(column) for column in codes.T], axis=1)


@pytest.mark.parametrize("gradients", ["local", "summed"])
def test_without_noise_it_learns_how_columns_hang_together(study, gradients):
    from evaluation.fidelity import mean_tvd1, mean_tvd2

    raw = {"gradients": gradients, "rounds": 2 if gradients == "local" else 80, "critic_steps": 100}
    study = study.with_family("dp-gan", raw)
    tables = [codec.encode(small_table(1500, k), study)[0] for k in range(2)]
    real, sizes = np.concatenate(tables), codec.sizes(study)
    learned = federated(study, tables, noise=False)
    assert mean_tvd1(learned, real, sizes) < 0.04
    assert mean_tvd2(learned, real, sizes) < 0.6 * mean_tvd2(independent(real), real, sizes)


def test_onnx_is_the_trained_network(study):
    import onnxruntime as ort

    rng = np.random.default_rng(3)
    weights = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes(study).items()}
    network = Generator(48, 48, sum(codec.sizes(study)))
    network.load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})
    z = rng.normal(size=(64, 48)).astype(np.float32)
    (logits,) = ort.InferenceSession(to_onnx(weights, 48, sum(codec.sizes(study)))).run(None, {"z": z})
    assert np.allclose(logits, network(torch.from_numpy(z)).detach().numpy(), atol=1e-4)


def test_fakes_are_one_hot_and_differentiable():
    logits = torch.zeros(5, 7, requires_grad=True)
    rows = fake_rows(logits, (3, 4))
    assert torch.equal(rows[:, :3].sum(1), torch.ones(5)) and torch.equal(rows[:, 3:].sum(1), torch.ones(5))
    (rows * torch.arange(7.0)).sum().backward()
    assert logits.grad.abs().sum() > 0
