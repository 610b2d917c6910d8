"""The integers of a secure sum, and the claims its noise is charged by."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import strategies as st

from evaluation.programme import priced_plan
from medsynx import privacy
from medsynx.errors import MedsynxError
from medsynx.secure_sum import noise
from medsynx.secure_sum.ring import RING, Ring
from medsynx.study import parse_study

vectors = st.integers(1, 8).flatmap(
    lambda width: st.tuples(
        st.just(Ring(width)),
        st.lists(st.integers(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1), min_size=1, max_size=9),
    )
)


@given(vectors)
def test_a_number_within_the_ring_survives_the_wire(case):
    ring, values = case
    packed = ring.pack(ring.encode(np.array(values, np.int64)))
    assert packed.nbytes == ring.width * len(values)
    assert ring.decode(ring.unpack(packed)).tolist() == values


@given(vectors, st.integers(0, 2**32 - 1))
def test_masks_that_cancel_leave_the_sum(case, seed):
    ring, values = case
    rng = np.random.default_rng(seed)
    mask = ring.encode(rng.integers(-(2**63), 2**63 - 1, len(values)))
    one = ring.add([ring.encode(np.array(values, np.int64)), mask])
    assert (one <= np.uint64(2 * ring.half - 1)).all()
    two = ring.encode(-ring.decode(mask))
    assert ring.decode(ring.add([one, two])).tolist() == values


def test_a_sum_of_three_bytes_wraps_like_whole_numbers_do():
    ring = Ring(3)
    at_the_top = ring.encode(np.array([ring.half - 1]))
    assert ring.decode(ring.add([at_the_top, ring.encode(np.array([1]))])).tolist() == [-ring.half]


@pytest.mark.parametrize("wrong", [np.zeros((3, 4), np.uint8), np.zeros(5, np.uint8), np.zeros((3, 5), np.int8)])
def test_other_shapes_are_no_numbers(wrong):
    with pytest.raises(ValueError, match="5 bytes"):
        RING.unpack(wrong)
    with pytest.raises(ValueError, match="nothing"):
        RING.add([])


def discrete(std: float, reach: int) -> np.ndarray:
    k = np.arange(-reach, reach + 1)
    weights = np.exp(-(k**2) / (2 * std**2))
    return weights / weights.sum()


def test_a_discrete_gaussian_is_a_continuous_one_rounded_at_random():
    """The docstring's construction at a small width, by quadrature: the same probabilities, for s large enough."""
    std, reach = 8.0, 40
    k = np.arange(-reach, reach + 1)
    for s, tolerance in ((noise.ROUNDING, 1e-9), (0.3, None)):
        v = math.sqrt(std**2 - s**2)
        z = np.linspace(-12 * std, 12 * std, 200_001)
        rounding = np.exp(-((k[:, None] - z) ** 2) / (2 * s**2))
        j = np.arange(-130, 131)
        normaliser = np.zeros_like(z)
        for value in j:
            normaliser += np.exp(-((value - z) ** 2) / (2 * s**2))
        density = np.exp(-(z**2) / (2 * v**2)) / (v * math.sqrt(2 * math.pi))
        found = (rounding / normaliser * density).sum(axis=1) * (z[1] - z[0])
        apart = np.abs(found / discrete(std, 100)[100 - reach : 101 + reach] - 1).max()
        if tolerance:
            assert apart < tolerance
        else:
            assert apart > 1e-3, "a finer rounding would not do: the test can tell"


def test_shares_add_up_to_one_discrete_gaussian_within_tau():
    std, sites, reach = 1.2, 4, 60
    total = discrete(std, reach)
    for _ in range(sites - 1):
        total = np.convolve(total, discrete(std, reach))
    middle = len(total) // 2
    found = total[middle - 8 : middle + 9]
    expected = discrete(std * math.sqrt(sites), reach)[reach - 8 : reach + 9]
    tau = 10 * sum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, sites))
    apart = np.abs(np.log(found / expected)).max()
    assert 0 < apart <= tau < 1e-3
    assert 10 * 10**6 * math.exp(-(math.pi**2) * noise.MIN_GRID**2) == 0, "and nothing at the grid in use"


def test_the_coarsest_grid_is_never_worse_than_what_is_charged():
    """Exact privacy loss of a one-dimensional discrete Gaussian at the coarsest allowed grid against the continuous charge."""
    sensitivity = round(noise.MIN_GRID / 3.73)
    exact = pld.from_discrete_gaussian_mechanism(noise.MIN_GRID, sensitivity, value_discretization_interval=1e-4)
    charged = privacy.epsilon([privacy.gaussian_event(noise.MIN_GRID / sensitivity)], 1e-5)
    assert exact.get_epsilon_for_delta(1e-5) <= charged * (1 + 1e-3)


def test_a_share_too_fine_for_the_grid_is_refused_before_anything_is_approved(raw_study):
    raw_study["privacy"] |= {"epsilon": 8, "trust": "secure-sum"}
    raw_study["rounds"]["quorum"] = 2
    assert priced_plan(parse_study(raw_study)).steps
    raw_study["rounds"]["quorum"] = 100_000
    with pytest.raises(MedsynxError, match="units, 64 are the least") as caught:
        priced_plan(parse_study(raw_study))
    assert caught.value.code == "budget-impossible"


def test_the_statement_says_what_each_sum_costs_in_zcdp(study):
    plan = priced_plan(study)
    first, *_ = privacy.statement(study.privacy, study.rounds.quorum, plan)["events"]
    multiplier = plan.steps[0].noise_multiplier * noise.GRID_CUSHION
    assert first["zcdp"] == pytest.approx(1 / (2 * multiplier**2))
