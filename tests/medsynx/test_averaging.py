"""From several sites' weights to one: the textbook's numbers, and what a bad site can do."""

import numpy as np
import pytest

from medsynx.generators import get_family
from medsynx.generators.averaging import adam_reach, advance, centre, weights_of
from medsynx.generators.base import State, Total
from medsynx.generators.dp_gan import initial_weights, shapes
from medsynx.plan import PricedStep
from medsynx.privacy import dpsgd_event
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY

pytestmark = pytest.mark.filterwarnings("ignore")
GOOD = [{"w": np.array([k, -k], np.float32)} for k in (1.0, 2.0, 3.0, 4.0)]
BAD = {"w": np.array([1e9, -1e9], np.float32)}


def test_the_mean_counts_every_site_once():
    assert np.allclose(centre(GOOD, "mean")["w"], [2.5, -2.5])


@pytest.mark.parametrize("how", ["median", "trimmed-mean"])
def test_a_minority_cannot_move_a_robust_centre_at_will(how):
    moved = centre([*GOOD, BAD], how)["w"]
    assert 1 <= moved[0] <= 4 and -4 <= moved[1] <= -1
    assert centre([*GOOD, BAD], "mean")["w"][0] > 1e8, "the plain mean does follow it"


def test_two_sites_have_no_outliers_to_trim():
    assert np.allclose(centre(GOOD[:2], "trimmed-mean")["w"], [1.5, -1.5])


def test_momentum_and_adam_take_the_steps_of_their_papers():
    before, found = {"w": np.zeros(2, np.float32)}, {"w": np.array([1.0, -2.0], np.float32)}
    assert np.allclose(advance(before, found, "average", 1.0)["w"], found["w"])
    assert np.allclose(advance(before, found, "average", 0.5)["w"], found["w"] / 2)
    once = advance(before, found, "momentum", 1.0)
    twice = advance(once, {"w": once["w"] + found["w"]}, "momentum", 1.0)
    assert np.allclose(once["w"], found["w"]) and np.allclose(twice["w"] - once["w"], 1.9 * found["w"], atol=1e-6)
    adam = advance(before, found, "adam", 0.1)
    expected = 0.1 * 0.1 * found["w"] / (np.sqrt(0.01 * found["w"] ** 2) + 1e-3)
    assert np.allclose(adam["w"], expected, atol=1e-6) and set(weights_of(adam)) == {"w"}


def family_round(study):
    step = get_family("dp-gan").plan(study)[1]
    return PricedStep(step, 1.0, dpsgd_event(1.0, step.sampling.rate, step.sampling.iterations))


@pytest.mark.parametrize("server", ["average", "momentum", "adam"])
def test_the_moments_stay_at_the_coordinator(server):
    raw = {**RAW_STUDY, "family": {"name": "dp-gan", "parameters": {"rounds": 2, "critic_steps": 1, "server": server}}}
    study, family = parse_study(raw), get_family("dp-gan")
    found = {n: a + np.float32(0.1) for n, a in initial_weights(study).items()}
    state, priced = State(initial_weights(study), {"rounds": 0}), family_round(study)
    for _ in range(2):
        state = family.combine(study, priced, state, Total(found, 0.0, 2))
    assert {n: a.shape for n, a in weights_of(state.arrays).items()} == shapes(study)
    assert (set(state.arrays) != set(shapes(study))) == (server != "average")
    family.export(study, state)


def test_the_proximal_term_holds_a_site_near_the_shared_generator(study):
    from medsynx import codec
    from medsynx.generators.base import Patients
    from tests.conftest import small_table

    moved = {}
    for proximal in (0.0, 100.0):
        parameters = {"rounds": 1, "critic_steps": 60, "hidden": 16, "latent": 8, "batch": 32, "proximal": proximal}
        gan = parse_study({**RAW_STUDY, "family": {"name": "dp-gan", "parameters": parameters}})
        codes = codec.encode(small_table(300, 1), gan)[0]
        priced = family_round(gan)
        patients = Patients(codes, np.arange(len(codes)))
        first = initial_weights(gan)
        margins = np.concatenate([np.full(k, 1 / k) for k in codec.sizes(gan)]).tolist()
        facts = {"margins": margins, "patients": 300.0, "sites": 1, "rounds": 0}
        out = get_family("dp-gan").contribute(gan, priced, State(first, facts), patients, {}).arrays
        moved[proximal] = float(sum(((out[n] - first[n]) ** 2).sum() for n in first))
    assert moved[100.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.9, 0.999)])
def test_adam_moves_no_weight_further_than_its_reach(betas):
    """Gradients made to move it as far as they can: each as large as the window before it makes worth while."""
    import torch

    for growth in (1.0, 1.2, 1.5, betas[1] / betas[0]):
        weight = torch.zeros(1, requires_grad=True)
        adam, steps = torch.optim.Adam([weight], lr=0.01, betas=betas), 40
        for k in range(steps):
            weight.grad = torch.full((1,), growth**k)
            adam.step()
        moved = abs(weight.item())
        assert 0.3 * steps * 0.01 < moved <= adam_reach(0.01, steps, betas)
