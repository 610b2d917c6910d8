"""The accountant against independent references; see also test_accounting.py."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from scipy.stats import norm

from medsynx import privacy
from medsynx.errors import MedsynxError
from medsynx.plan import Sampling, Sensitivity, Step
from medsynx.secure_sum.noise import GRID_CUSHION
from medsynx.study import PrivacySpec

SPEC = PrivacySpec(epsilon=1.0, delta=1e-5)


def gaussian(name: str, part: str = "train", share: float = 1.0) -> Step:
    return Step(name, "secure-sum", part, 10, share, Sensitivity(3.0, 1.0, "test"))  # type: ignore[arg-type]


def exact_gaussian_delta(multiplier: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8, for sensitivity 1."""
    a, b = 1 / (2 * multiplier), eps * multiplier
    return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b))


@pytest.mark.parametrize(("eps", "delta"), [(0.5, 1e-5), (1, 1e-5), (3, 1e-6), (10, 1e-5)])
def test_gaussian_calibration_is_that_of_balle_and_wang(eps, delta):
    charged = privacy.gaussian_multiplier(eps, delta) * GRID_CUSHION
    assert exact_gaussian_delta(charged, eps) <= delta
    assert exact_gaussian_delta(charged * 0.99, eps) > delta, "and no more than a percent above it"


def test_shares_of_a_part_compose_to_the_budget_and_parts_do_not_add_up():
    plan = privacy.calibrate(SPEC, [gaussian("a", share=0.1), gaussian("b", share=0.9), gaussian("h", "holdout")])
    assert privacy.epsilon_of_plan(plan, 1e-5) == pytest.approx(1.0, rel=1e-3)
    train = privacy.epsilon([s.event for s in plan.steps[:2]], 1e-5)
    assert train == pytest.approx(1.0, rel=1e-3) and train <= 1.0
    everything = privacy.epsilon([s.event for s in plan.steps], 1e-5)
    assert everything > 1.3, "were a patient in both parts, it would cost more"
    spent = [("all", plan.steps[0].event), ("holdout", plan.steps[2].event)]
    assert privacy.epsilon_of_parts(spent, 1e-5) == privacy.epsilon([e for _, e in spent], 1e-5)


def test_sgd_shares_the_budget_with_the_sums_beside_it():
    rounds = [Step(f"round {k}", "model-update", "train", 5, 0, sampling=Sampling(0.05, 40)) for k in range(3)]
    plan = privacy.calibrate(SPEC, [*rounds, gaussian("reference", share=0.2)])
    assert len({s.noise_multiplier for s in plan.steps[:3]}) == 1
    assert 0.99 < privacy.epsilon_of_plan(plan, 1e-5) <= 1.0
    alone = privacy.calibrate(SPEC, rounds)
    assert alone.steps[0].noise_multiplier < plan.steps[0].noise_multiplier


def test_events_survive_json_and_strangers_are_refused():
    event = dp_event.ComposedDpEvent(
        [privacy.gaussian_event(2.0), privacy.dpsgd_event(1.1, 0.01, 500), dp_event.NonPrivateDpEvent()]
    )
    assert privacy.event_from_json(privacy.event_to_json(event)) == event
    for text in ("{}", '{"laplace": {}}', "[1]"):
        with pytest.raises(ValueError):
            privacy.event_from_json(text)
    with pytest.raises(TypeError):
        privacy.event_to_json(dp_event.LaplaceDpEvent(1.0))


def test_without_noise_epsilon_is_infinite_everywhere():
    plan = privacy.calibrate(SPEC, [gaussian("a")]).without_noise()
    assert privacy.gaussian_event(plan.steps[0].noise_multiplier) == dp_event.NonPrivateDpEvent()
    assert privacy.epsilon([dp_event.NonPrivateDpEvent()], 1e-5) == math.inf
    body = privacy.statement(SPEC, 2, plan, noise=False)
    assert body["private"] is False and [g["epsilon"] for g in body["guarantees"]] == [None, None]


def test_both_guarantees():
    plan = privacy.calibrate(SPEC, [gaussian("a")])
    researcher, coordinator = privacy.guarantees(SPEC, 4, plan)
    assert researcher.epsilon <= 1.0 < coordinator.epsilon, "a single share of a quarter of the variance protects less"
    expected = privacy.epsilon([privacy.gaussian_event(plan.steps[0].noise_multiplier / 2)], 1e-5)
    assert coordinator.epsilon == expected
    local = SPEC.model_copy(update={"trust": "local"})
    researcher, coordinator = privacy.guarantees(local, 4, plan)
    assert researcher.epsilon == coordinator.epsilon <= 1.0
    fewer = SPEC.model_copy(update={"tolerated_dropouts": 2})
    assert privacy.share_divisor(fewer, 4) == 2


def test_an_impossible_budget_is_named():
    tiny = PrivacySpec(epsilon=1e-9, delta=1e-15)
    with pytest.raises(MedsynxError) as caught:
        privacy.calibrate(tiny, [gaussian("a")])
    assert caught.value.code == "budget-impossible"


def test_composition_of_equal_steps_is_not_cheaper_than_pld_says():
    """Merging equal DP-SGD steps before the accountant must not change the figure."""
    from dp_accounting.pld import PLDAccountant

    events = [privacy.dpsgd_event(1.0, 0.02, 50)] * 3 + [privacy.gaussian_event(8.0), privacy.gaussian_event(6.0)]
    accountant = PLDAccountant()
    for e in events:
        accountant.compose(e)
    assert privacy.epsilon(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)
    assert np.isfinite(privacy.epsilon([], 1e-5)) and privacy.epsilon([], 1e-5) == 0
