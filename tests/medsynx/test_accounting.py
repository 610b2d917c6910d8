"""DP-SGD accounting against Opacus' own accountants and published values."""

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from medsynx import privacy

CONFIGURATIONS = [(1.0, 0.01, 1000), (0.8, 0.02, 500), (2.0, 0.05, 1500), (1.5, 0.1, 300), (4.0, 0.05, 3000)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("noise", "rate", "steps"), CONFIGURATIONS)
def test_epsilon_is_that_of_opacus_within_two_percent(noise, rate, steps):
    other = PRVAccountant()
    other.history = [(noise, rate, steps)]
    ours = privacy.epsilon([privacy.dpsgd_event(noise, rate, steps)], 1e-5)
    assert ours == pytest.approx(other.get_epsilon(1e-5), rel=0.02)


@pytest.mark.filterwarnings("ignore")
def test_the_mnist_example_of_tensorflow_privacy():
    """256 of 60,000 examples, noise multiplier 1.1, 60 epochs, delta 1e-5: its tutorial states epsilon about 3.0 by moments (RDP); PLD is tighter."""
    rate, steps = 256 / 60_000, 60 * 60_000 // 256
    ours = privacy.epsilon([privacy.dpsgd_event(1.1, rate, steps)], 1e-5)
    moments = RDPAccountant()
    moments.history = [(1.1, rate, steps)]
    assert 2.2 < ours < moments.get_epsilon(1e-5) < 3.1


def test_more_steps_cost_more_and_more_noise_costs_less():
    def cost(noise, steps):
        return privacy.epsilon([privacy.dpsgd_event(noise, 0.02, steps)], 1e-5)

    assert cost(1.0, 100) < cost(1.0, 400) and cost(2.0, 400) < cost(1.0, 400)
