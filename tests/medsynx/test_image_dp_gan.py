"""``image-dp-gan``: one promise a test, and that it learns."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.programme import priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators import get_family, image_dp_gan, image_sizes
from medsynx.generators.averaging import weights_of
from medsynx.generators.base import ImagePatients, State, Total
from medsynx.generators.dp_gan_networks import tensors
from medsynx.generators.dp_gan_sum import CRITIC, NORM, published
from medsynx.generators.gan_coordinator import under
from medsynx.generators.gan_training import CriticTrainer
from medsynx.generators.image_dp_gan_networks import Fakes, make_critic, make_generator, records_of
from medsynx.generators.image_dp_gan_sum import clipped_sum
from medsynx.generators.image_networks import Critic, GeneratorFromMoments
from medsynx.generators.moments import cosines
from medsynx.image_samplers import open_image_sampler
from medsynx.plan import PricedStep, Sampling
from medsynx.privacy import dpsgd_event, epsilon
from medsynx.study import parse_study
from tests.conftest import RAW_IMAGE_STUDY, stripes

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILY = get_family("image-dp-gan")
SMALL = {"rounds": 2, "critic_steps": 4, "batch": 16, "latent": 4, "critic_width": 4, "clip_norm": 0.5}


def study_of(shape=(12, 12, 1), classes=("flat", "upright"), **parameters):
    image = {**RAW_IMAGE_STUDY["image"], "shape": list(shape), "classes": list(classes)}
    family = {"name": "image-dp-gan", "parameters": {**SMALL, **parameters}}
    return parse_study({**RAW_IMAGE_STUDY, "image": image, "family": family})


STUDY = study_of()
P = FAMILY.parameters(STUDY.family.parameters)


def patients_of(images, label, patient=None):
    number = np.arange(len(images)) if patient is None else np.asarray(patient)
    return ImagePatients(np.asarray(label, np.int64).reshape(-1, 1), number, np.asarray(images, np.float32))


def striped(count, seed, size=12):
    pixels, label = stripes(count, seed, size)
    return patients_of(pixels[:, None] / 255, label)


NOBODY = patients_of(np.zeros((0, 1, 12, 12)), [])


def measured(study=STUDY, patients=None, sites=1, noise=False):
    """The state after the two sums."""
    rows, state, rng = striped(400, 1) if patients is None else patients, State(), np.random.default_rng(0)
    for priced in (planned(study, 0), planned(study, 1)):
        vector = FAMILY.contribute(study, priced, state, rows, {}).arrays["sum"]
        std = priced.noise_std if noise else 0.0
        vector = vector + np.round(rng.normal(0, std, len(vector))).astype(np.int64)
        state = FAMILY.combine(study, priced, state, Total({"sum": vector}, std, sites))
    return state


def planned(study, number, noise_multiplier=20.0):
    """A step with this noise, whatever its price: the accountant has a test of its own."""
    return PricedStep(FAMILY.plan(study)[number], noise_multiplier, None)


def a_round(study, noise_multiplier, rate, iterations):
    step = replace(FAMILY.plan(study)[2], sampling=Sampling(rate, iterations))
    return PricedStep(step, noise_multiplier, dpsgd_event(noise_multiplier, rate, iterations))


# -- sizes


def generator_of(shape):
    return GeneratorFromMoments(shape, 3, 5, cosines(shape[0], 7), cosines(shape[1], 7))


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 64, 3), (31, 40, 1), (128, 96, 1), (8, 8, 3)])
def test_sizes_known_without_torch_are_the_networks(shape):
    for made, known in (
        (generator_of(shape), image_sizes.generator_from_moments(shape, 3, 5, 49 * shape[2])),
        (Critic(shape, 3, 6), image_sizes.critic(shape, 3, 6)),
    ):
        assert {n: tuple(t.shape) for n, t in made.state_dict().items()} == known
    label = torch.eye(3)[[0, 2]]
    pixels = generator_of(shape)(torch.randn(2, 5), label)
    assert pixels.shape == (2, shape[2], *shape[:2]) and pixels.min() >= 0 and pixels.max() <= 1
    assert Critic(shape, 3, 6)(torch.cat([pixels.flatten(1), label], 1)).shape == (2, 1)


def test_the_family_needs_no_torch_to_plan():
    code = "import sys, medsynx.generators.image_dp_gan; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_coordinator_needs_no_opacus():
    """It starts generators, learns from sums and exports without."""
    code = "import sys; sys.modules['opacus'] = None; import medsynx.generators.image_dp_gan_sum"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the accountant


@pytest.mark.parametrize(("budget", "way", "cargo"), [(1.0, "local", "model-update"), (3.0, "summed", "secure-sum")])
def test_epsilon_is_opacus_own_within_two_percent(budget, way, cargo):
    """The whole plan by default, the two sums and all, by the accountant of another library."""
    from opacus.accountants import PRVAccountant

    raw = {**RAW_IMAGE_STUDY, "privacy": {"epsilon": budget, "delta": 1e-5}}
    study = parse_study(raw).with_family("image-dp-gan", {"gradients": way})
    plan = priced_plan(study)
    assert [s.step.name for s in plan.steps[:3]] == ["means", "covariances", "round 1"]
    assert {s.step.cargo for s in plan.steps[2:]} == {cargo}
    ours = epsilon([s.event for s in plan.steps], 1e-5)
    theirs, history = PRVAccountant(), {}
    for s in plan.steps:
        sampling = s.step.sampling or Sampling(1.0, 1)
        at = (s.noise_multiplier, sampling.rate)
        history[at] = history.get(at, 0) + sampling.iterations
    theirs.history = [(noise, rate, steps) for (noise, rate), steps in history.items()]
    assert 0.99 * budget < ours <= budget * (1 + 1e-9)
    assert theirs.get_epsilon(1e-5) == pytest.approx(ours, rel=0.02)


# -- the critic under DP-SGD: the trainer is dp-gan's, the network is not


def trainer_of(noise_multiplier):
    return CriticTrainer(make_critic(STUDY), P, noise_multiplier)


def records(rows: ImagePatients) -> torch.Tensor:
    return records_of(STUDY, rows, "cpu")(np.arange(len(rows.codes)))


SOME = records(striped(10, 3))


def noised_gradient(trainer, real):
    """What leaves the clip-and-noise step: the real gradient as the optimiser has it before fakes are added, times the public batch size."""
    seen = []
    trainer.optimizer.attach_step_hook(
        lambda o: seen.append(torch.cat([q.grad.flatten().clone() for q in trainer.parameters]) * P.batch)
    )
    trainer.step(real, SOME[:4])
    return seen[0]


def test_one_image_says_nothing_of_another():
    """The critic judges image by image, and a network that does not is refused."""
    rows = SOME.clone().requires_grad_()
    (slope,) = torch.autograd.grad(make_critic(STUDY)(rows)[3, 0], rows)
    assert slope[3].abs().sum() > 0 and slope[[0, 1, 2, *range(4, 10)]].abs().sum() == 0
    with pytest.raises(ValueError, match="mix patients"):
        CriticTrainer(nn.Sequential(nn.Linear(146, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), P, 1.0)


def test_one_patient_moves_the_sum_by_the_clip_norm_at_most():
    trainer = trainer_of(0.0)
    state = {n: t.clone() for n, t in trainer.critic.state_dict().items()}
    many, moves = noised_gradient(trainer, SOME), []
    for patient in (SOME[:1] * 1e4, -SOME[:1] * 1e4, SOME[:1], torch.full((1, 146), torch.inf)):
        other = trainer_of(0.0)
        other.critic.load_state_dict(state)
        moves.append(float((noised_gradient(other, torch.cat([SOME, patient])) - many).norm()))
    assert max(moves) == pytest.approx(P.clip_norm, rel=1e-2), "the bound is reached: patients count, and are clipped"
    assert max(moves) <= P.clip_norm * (1 + 1e-3)


def test_noise_of_the_stated_size_is_added_to_empty_batches_too():
    draws = torch.cat([noised_gradient(trainer_of(3.0), SOME[:0]) for _ in range(10)])
    assert len(draws) > 5000 and abs(draws.std() / (3.0 * P.clip_norm) - 1) < 0.06


# -- a round at a site


def spied_round(priced, patients, monkeypatch, keep=None, state=None):
    """One real round that also notes each critic step's real batch and noise, and the critic it starts with."""
    batches, noise, critics, step = [], set(), [], CriticTrainer.step

    def noting(self, real, fake):
        critics.append({n: t.clone().numpy() for n, t in self.critic.state_dict().items()})
        batches.append(real.clone())
        noise.add((self.optimizer.noise_multiplier, self.optimizer.max_grad_norm, self.optimizer.expected_batch_size))
        step(self, real, fake)

    monkeypatch.setattr(CriticTrainer, "step", noting)
    out = FAMILY.contribute(STUDY, priced, state or measured(sites=2), patients, keep or {})
    monkeypatch.undo()
    return out, batches, noise, critics[0]


def test_a_round_spends_what_was_priced_and_nothing_else(monkeypatch):
    """Noise, rate and steps are those the ledger was charged for; the divisor comes from the noised count alone."""
    state = measured(sites=2)
    _, batches, noise, _ = spied_round(a_round(STUDY, 2.5, 0.3, 12), striped(500, 2), monkeypatch, state=state)
    assert len(batches) == 12 and abs(np.mean([len(b) for b in batches]) - 150) < 25, "18 are six standard deviations"
    assert noise == {(2.5, P.clip_norm, 0.3 * state.facts["patients"] / 2)}


def test_a_patient_lends_one_of_its_own_images_to_a_batch(monkeypatch):
    """At rate 1 every batch holds each patient once, however many images there are; all of them get their turn."""
    patient = np.array([2, 0, 1, 0, 3, 2, 0, 0, 1, 0])
    images = np.zeros((10, 1, 12, 12))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = patient / 10, np.arange(10) / 10
    rows = patients_of(images, patient % 2, patient)
    _, batches, _, _ = spied_round(a_round(STUDY, 1.0, 1.0, 100), rows, monkeypatch)
    for real in batches:
        assert sorted((real[:, 0] * 10).round().int().tolist()) == [0, 1, 2, 3]
        assert ((real[:, 0] * 10).round().int() % 2 == real[:, -1].int()).all(), "with its own class"
    assert {round(float(v) * 10) for real in batches for v in real[:, 1]} == set(range(10))


def test_only_the_generator_leaves_and_the_critic_returns(monkeypatch):
    rows, priced = striped(60, 4), a_round(STUDY, 1.0, 0.5, 3)
    out, _, _, _ = spied_round(priced, rows, monkeypatch)
    assert {n: a.shape for n, a in out.arrays.items()} == image_dp_gan.shapes(STUDY)
    assert sum(a.size for a in out.arrays.values()) == priced.step.size
    assert out.keep.keys() == {f"_module.{n}" for n in image_dp_gan.critic_shapes(STUDY)}
    assert all(a.dtype == np.float32 for a in (*out.arrays.values(), *out.keep.values()))
    _, _, _, resumed = spied_round(priced, rows, monkeypatch, out.keep)
    assert resumed.keys() == out.keep.keys() and all(np.array_equal(resumed[n], out.keep[n]) for n in resumed)


@pytest.mark.parametrize("rows", [NOBODY, striped(1, 5), patients_of(striped(30, 5).images, np.zeros(30))])
def test_few_patients_none_or_one_class_alone_are_no_failure(rows, monkeypatch):
    """Whether a site has them must not show as one. Of 25 batches of thirty patients at this rate one is empty, but for one run in 10^8."""
    out, batches, _, _ = spied_round(a_round(STUDY, 1.0, 0.02, 25), rows, monkeypatch)
    assert min(len(b) for b in batches) == 0 and all(np.isfinite(a).all() for a in out.arrays.values())


@pytest.mark.parametrize("way", ["local", "summed"])
def test_networks_of_another_shape_are_refused_whatever_the_images(way):
    study = study_of(gradients=way)
    state = measured(study)
    bad = State({n: a[..., :-1] for n, a in state.arrays.items()}, state.facts)
    for rows in (NOBODY, striped(30, 1)):
        with pytest.raises(ValueError, match="shape"):
            FAMILY.contribute(study, planned(study, 2), bad, rows, {})


# -- sums of gradients


def test_an_integer_gradient_is_bounded_exactly_and_reaches_its_bound():
    torch.manual_seed(0)
    critic, norms = make_critic(STUDY), []
    wild = [SOME[:1], SOME[:1] * 1e4, -SOME[:1] * 1e18, torch.full((1, 146), torch.inf), torch.zeros(1, 146)]
    for scale in (1.0, 30.0, 1e30):
        with torch.no_grad():
            for q in critic.parameters():
                q.mul_(scale)
        for row in wild:
            for real in (True, False):
                found = clipped_sum(critic, row, 0.05, real=real).astype(object)
                norms.append(float((found**2).sum()) ** 0.5)
    assert max(norms) <= NORM and max(norms) > 0.999 * NORM


def test_integers_of_a_patient_depend_on_nobody_else():
    """To the last unit, wherever it stands: neighbouring data sets differ by one bounded vector. Hence sites add up to their union too."""
    critic, rows = make_critic(STUDY), records(striped(40, 6))
    alone = [clipped_sum(critic, rows[k : k + 1], 0.5, real=True) for k in range(40)]
    assert (clipped_sum(critic, rows, 0.5, real=True) == sum(alone)).all()
    order = np.random.default_rng(0).permutation(40)
    moved = clipped_sum(critic, rows[order], 0.5, real=True) - clipped_sum(critic, rows[order[:-1]], 0.5, real=True)
    assert (moved == alone[order[-1]]).all()


def test_the_sum_is_the_critics_gradient():
    critic = make_critic(STUDY)
    found = clipped_sum(critic, SOME, 1e3, real=True) * (1e3 / NORM)
    loss = torch.nn.functional.softplus(-critic(SOME)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(critic.parameters()))]).numpy()
    assert np.abs(found - exact).max() < 10 * 1e3 / NORM, "ten images, cut to less than a unit each"


def test_a_summed_round_asks_a_poisson_sample_of_patients():
    """At rate 1 all are asked, at a small rate hardly any."""
    study = study_of(gradients="summed", sample_rate=1.0)
    state, rows = measured(study), striped(30, 7)
    critic = make_critic(study)
    critic.load_state_dict(tensors(under(state.arrays, CRITIC)))
    everyone = clipped_sum(critic, records_of(study, rows, "cpu")(np.arange(30)), P.clip_norm, real=True)
    priced = planned(study, 2)
    assert (FAMILY.contribute(study, priced, state, rows, {}).arrays["sum"] == everyone).all()
    rare = replace(priced, step=replace(priced.step, sampling=Sampling(1e-9, 1)))
    assert not FAMILY.contribute(study, rare, state, rows, {}).arrays["sum"].any()


# -- what the coordinator makes of it


def test_the_generator_starts_as_the_gaussians_of_moments():
    """Their means, their spread, and images that look like their class, before any critic has said a word."""
    rows = striped(600, 8)
    state = measured(patients=rows)
    made = make_generator(STUDY, state.arrays)
    with torch.no_grad():
        drawn = made(torch.randn(600, P.latent), torch.eye(2)[torch.arange(600) % 2]).numpy()
    for k in (0, 1):
        real, found = rows.images[rows.codes[:, 0] == k], drawn[k::2]
        assert np.abs(found.mean(axis=0) - real.mean(axis=0)).mean() < 0.05
        assert found.std(axis=0).mean() == pytest.approx(real.std(axis=0).mean(), rel=0.35)


def test_the_pull_is_the_distance_of_class_means_without_bias():
    state = measured(patients=striped(600, 8))
    fakes = Fakes(study_of(batch=64), state.facts)
    label = torch.eye(2)[torch.arange(64) % 2]
    rows = striped(3000, 9)
    flat, upright = (np.flatnonzero(rows.codes[:, 0] == k) for k in (0, 1))
    rng, found = np.random.default_rng(1), []
    for _ in range(60):
        pick = np.stack([rng.choice(flat, 32), rng.choice(upright, 32)], axis=1).ravel()
        found.append(float(fakes.apart(torch.from_numpy(rows.images[pick]), label)))
    spread = float(np.std(found)) / 60**0.5
    assert abs(np.mean(found)) < 6 * spread + 0.1, "real images are at no distance from their own means"
    assert float(fakes.apart(torch.zeros(64, 1, 12, 12), label)) > 20


def federated(study, sites, noise=False, seed=0):
    """A whole run, of which only bounded or trained arrays pass between sites and coordinator."""
    state, keep, rng = State(), [{} for _ in sites], np.random.default_rng(seed)
    while step := FAMILY.next_step(study, state):
        priced, outs = PricedStep(step, 3.0 if noise else 0.0, None), []
        for k, rows in enumerate(sites):
            out = FAMILY.contribute(study, priced, state, rows, keep[k])
            keep[k] = out.keep
            outs.append(out.arrays)
        if step.cargo == "model-update":
            total = Total(
                {n: np.mean([o[n] for o in outs], axis=0).astype(np.float32) for n in outs[0]}, 0.0, len(outs)
            )
        else:
            std = priced.noise_std
            drawn = np.round(rng.normal(0, std, step.size)).astype(np.int64)
            total = Total({"sum": np.sum([o["sum"] for o in outs], axis=0) + drawn}, std, len(outs))
        state = FAMILY.combine(study, priced, state, total)
        json.dumps(state.facts)
    return FAMILY.export(study, state), state


LEARNING = {
    "local": {"rounds": 2, "critic_steps": 40, "generator_steps": 2},
    "summed": {"rounds": 90, "generator_steps": 2, "sample_rate": 0.1},
}


@pytest.mark.parametrize("way", sorted(LEARNING))
def test_without_noise_it_learns_how_images_of_a_class_differ(way, monkeypatch):
    """From class means alone, which show the stripes' direction and no phase at all. The two sites have one class each, almost."""
    monkeypatch.setattr(image_dp_gan, "measured", without_factors)
    study = study_of(
        gradients=way,
        **{"batch": 32, "clip_norm": 5.0, "critic_rate": 4e-3, "generator_rate": 1e-3, "average": 0.9, **LEARNING[way]},
    )
    rows = striped(600, 10)
    first = (rows.codes[:, 0] == 0) ^ (np.arange(600) % 4 == 0)
    sites = [patients_of(rows.images[at], rows.codes[at, 0]) for at in (first, ~first)]
    artefact, _ = federated(study, sites)
    made = open_image_sampler(artefact.sampler, artefact.files, study).sample(300, np.random.default_rng(0))
    down = (np.diff(made.pixels, axis=2) ** 2).mean(axis=(1, 2, 3))
    across = (np.diff(made.pixels, axis=3) ** 2).mean(axis=(1, 2, 3))
    assert ((across > down) == (made.label == 1)).mean() > 0.9
    spread = [
        x[label == 0].std(axis=0).mean() for x, label in ((made.pixels, made.label), (rows.images, rows.codes[:, 0]))
    ]
    assert spread[0] > 0.3 * spread[1], "images of a class differ"


def without_factors(study, state, sites, real=image_dp_gan.measured):
    gaussians, facts = real(study, state, sites)
    return gaussians | {"factors": 0 * gaussians["factors"]}, facts


@pytest.mark.parametrize("way", ["local", "summed"])
def test_three_classes_in_colour_with_noise_one_of_them_absent(way):
    """A class that noise hides is neither made nor drawn as a fake; the network is what the file says."""
    import onnxruntime as ort

    study = study_of((8, 9, 3), ("a", "b", "c"), gradients=way, critic_steps=2)
    images = np.random.default_rng(0).random((300, 3, 8, 9), np.float32)
    artefact, state = federated(study, [patients_of(images, np.arange(300) % 2), NOBODY_IN_COLOUR], noise=True)
    sampler = open_image_sampler(artefact.sampler, artefact.files, study)
    assert sampler.made == [0, 1] and any("c" in note for note in artefact.notes[1:])
    assert not Fakes(study, state.facts).labels()[:, 2].any()
    weights = published(state.arrays) if way == "summed" else weights_of(state.arrays)
    network = make_generator(study, weights).eval()
    z, label = torch.randn(5, P.latent), torch.eye(3)[[0, 1, 1, 0, 1]]
    (pixels,) = ort.InferenceSession(artefact.files["generator.onnx"]).run(
        None, {"z": z.numpy(), "label": label.numpy()}
    )
    assert np.allclose(pixels, network(z, label).detach().numpy(), atol=1e-5)


NOBODY_IN_COLOUR = patients_of(np.zeros((0, 3, 8, 9)), [])


def test_too_few_patients_for_any_class_are_said():
    with pytest.raises(MedsynxError) as caught:
        measured(patients=striped(2, 1), noise=True)
    assert caught.value.code == "patients-too-few"


def test_the_start_is_public_and_the_same_everywhere():
    one, two = measured().arrays, measured().arrays
    assert all(np.array_equal(one[n], two[n]) for n in one)
