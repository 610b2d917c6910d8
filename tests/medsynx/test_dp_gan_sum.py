"""Clipped gradients as integers: the bound holds for every row and critic, sums are exact, and a round costs what its noise is worth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from evaluation.programme import priced_plan
from medsynx import codec
from medsynx.generators import dp_gan_sum as summed
from medsynx.generators import get_family
from medsynx.generators.base import Patients, State, Total
from medsynx.generators.dp_gan import initial_weights
from medsynx.plan import PricedStep, Sampling
from medsynx.privacy import GRID_CUSHION, dpsgd_event, epsilon, guarantees
from medsynx.study import parse_study
from site_agent import door as door_module
from site_agent.door import Door, Permit
from tests.conftest import RAW_STUDY, small_table
from tests.helpers import make_site

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, HIDDEN = 12, 5
FAMILY = get_family("dp-gan")
SUMMED = {"gradients": "summed", "rounds": 6, "critic_hidden": 8, "sample_rate": 0.25, "batch": 32, "hidden": 16}


def critic(seed, scale):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, (out, fed + 1)) for out, fed in summed.widths(WIDTH, HIDDEN)]


def rows(count, seed):
    return np.eye(WIDTH)[np.random.default_rng(seed).integers(0, WIDTH, count)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-9, 0.1, 1.0, 30.0, 1e6, 1e100]),
    clip=st.sampled_from([1e-3, 0.3, 1.0, 100.0]),
    broken=st.sampled_from([0.0, math.inf, -math.inf, math.nan]),
    strange=st.sampled_from([1.0, -1e4, 1e12, math.nan]),
    real=st.booleans(),
)
def test_no_row_and_no_critic_moves_the_sum_by_more_than_its_norm(seed, scale, clip, broken, strange, real):
    layers = critic(seed, scale)
    if broken:
        layers[seed % 3].flat[seed % (HIDDEN + 1)] = broken
    others, one = rows(6, seed), rows(1, seed + 1) * strange
    without = summed.clipped_sum(layers, others, clip, real=real)
    with_ = summed.clipped_sum(layers, np.concatenate([others, one]), clip, real=real)
    moved = [int(x) for x in with_ - without]
    assert sum(x * x for x in moved) <= summed.NORM**2
    assert np.array_equal(with_ - without, summed.clipped_sum(layers, one, clip, real=real)), "sums are exact"


def test_a_rows_integers_do_not_depend_on_who_else_is_there():
    """At a width where a matrix product of another shape adds up in another order."""
    rng = np.random.default_rng(3)
    layers = [rng.normal(0, 0.3, (out, fed + 1)) for out, fed in summed.widths(130, 32)]
    some = np.eye(130)[rng.integers(0, 130, (300, 13))].sum(axis=1)
    alone = sum(summed.clipped_sum(layers, row[None], 1.0, real=True) for row in some)
    for order in (np.arange(300), rng.permutation(300)):
        assert (summed.clipped_sum(layers, some[order], 1.0, real=True) == alone).all()


@pytest.mark.parametrize("real", [True, False])
def test_it_is_the_clipped_gradient_of_the_loss(real):
    layers, batch, clip = critic(3, 1.0), rows(9, 4), 0.7
    expected = np.zeros(summed.size(WIDTH, HIDDEN))
    weights = [torch.tensor(layer, requires_grad=True) for layer in layers]
    for row in torch.from_numpy(batch):
        h = row
        for w in weights[:-1]:
            h = F.leaky_relu(w[:, :-1] @ h + w[:, -1], summed.SLOPE)
        out = weights[-1][:, :-1] @ h + weights[-1][:, -1]
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(F.softplus(-out if real else out).sum(), weights)]
        )
        expected += (gradient * min(1, clip / float(gradient.norm()))).numpy()
    found = summed.clipped_sum(layers, batch, clip, real=real) * (clip / summed.NORM)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.fixture(scope="module")
def study():
    privacy = {**RAW_STUDY["privacy"], "trust": "secure-sum", "epsilon": 3.0}
    raw = {**RAW_STUDY, "privacy": privacy, "rounds": {"quorum": 4}, "family": {"name": "dp-gan", "parameters": SUMMED}}
    return parse_study(raw)


def test_a_round_is_charged_as_a_sampled_gaussian_against_both(study):
    """Against researchers with the whole noise, against the coordinator with one site's share of it; both with the sampling rate of the plan."""
    plan = priced_plan(study)
    rounds = [s for s in plan.steps if s.step.name.startswith("round")]
    assert len(rounds) == 6 and {s.step.cargo for s in rounds} == {"secure-sum"}
    noise = rounds[0].noise_multiplier
    one = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(noise * GRID_CUSHION))
    assert all(s.event == dp_event.SelfComposedDpEvent(one, 1) for s in rounds)
    everything = [s.event for s in plan.steps if s.step.part != "holdout"]
    assert study.privacy.epsilon * 0.98 < epsilon(everything, 1e-5) <= study.privacy.epsilon
    researcher, coordinator = guarantees(study.privacy, 4, plan)
    share = dpsgd_event(noise / 2 * GRID_CUSHION, 0.25, 6)
    assert researcher.epsilon <= 3.0 and coordinator.epsilon > epsilon([share], 1e-5)
    single = [replace(s, noise_multiplier=s.noise_multiplier / 2) for s in plan.steps]
    gaussians = [
        dp_event.GaussianDpEvent(s.noise_multiplier * GRID_CUSHION)
        for s in single
        if s.step.sampling is None and s.step.part != "holdout"
    ]
    assert coordinator.epsilon == pytest.approx(epsilon([*gaussians, share], 1e-5), rel=1e-6)


def test_the_door_adds_the_share_that_was_priced(study, tmp_path, monkeypatch):
    drawn = []
    real = door_module.discrete_gaussian
    monkeypatch.setattr(door_module, "discrete_gaussian", lambda std, size: drawn.append(std) or real(std, size))
    priced = priced_plan(study).find("round 1")
    patients = Patients(codec.encode(small_table(200, 1), study)[0], np.arange(200))
    door = Door(make_site(tmp_path / "site", study, small_table(200, 1)), simulated=True)
    made = FAMILY.contribute(study, priced, begun(study), patients, {})
    door._sum(Permit(study, "table", "run", priced, private=True, masked=False, split=""), made, None)
    assert drawn == [pytest.approx(priced.noise_multiplier * summed.NORM / 2)]


def begun(study):
    margins = np.concatenate([np.full(k, 1 / k) for k in codec.sizes(study)]).tolist()
    p = FAMILY.parameters(study.family.parameters)
    facts = {"margins": margins, "patients": 400.0, "sites": 4, "rounds": 0}
    return State(summed.start(study, p, initial_weights(study, margins)), facts)


def test_a_round_samples_patients_at_the_priced_rate_and_takes_one_record_of_each(study, monkeypatch):
    seen = []
    real = summed.clipped_sum
    monkeypatch.setattr(summed, "clipped_sum", lambda c, rows, n, real=True: seen.append(rows) or zero(study))
    patient = np.repeat(np.arange(300), 3)
    codes = np.zeros((900, len(codec.sizes(study))), np.int64)
    patients, step = Patients(codes, patient), FAMILY.plan(study)[1]
    priced = PricedStep(replace(step, sampling=Sampling(0.4, 1)), 1.0, None)
    for _ in range(60):
        FAMILY.contribute(study, priced, begun(study), patients, {})
    sizes = np.array([len(r) for r in seen])
    assert abs(sizes.mean() - 120) < 6 and sizes.std() > 4, "Poisson batches of patients, not of records"
    assert real is not summed.clipped_sum


def zero(study):
    return np.zeros(FAMILY.plan(study)[1].size, np.int64)


def test_only_the_critic_is_sent_and_the_divisor_is_public(study):
    """Sites need the critic alone; twice the patients give twice the sum, over the same expected batch."""
    from medsynx.generators.averaging import weights_of

    state, priced = begun(study), priced_plan(study).find("round 1")
    assert set(weights_of(state.arrays)) == {f"{summed.CRITIC}{k}" for k in range(3)}
    total = Total({"sum": np.full(priced.step.size, 1000, np.int64)}, 0.0, 4)
    after = FAMILY.combine(study, priced, state, total)
    assert set(weights_of(after.arrays)) == set(weights_of(state.arrays)) and after.facts["rounds"] == 1
    held = {n: a.shape for n, a in summed.published(after.arrays).items()}
    assert held == {n: a.shape for n, a in initial_weights(study).items()}


def test_a_state_of_another_network_is_not_answered(study):
    state = begun(study)
    wrong = State({**state.arrays, "critic.0": np.zeros((3, 3), np.float32)}, state.facts)
    patients = Patients(codec.encode(small_table(50, 1), study)[0], np.arange(50))
    with pytest.raises(ValueError, match="shape"):
        FAMILY.contribute(study, priced_plan(study).find("round 1"), wrong, patients, {})
