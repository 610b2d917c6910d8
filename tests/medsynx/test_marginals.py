import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynx import codec
from medsynx.generators import get_family
from medsynx.generators.base import Patients, State, Total
from medsynx.generators.marginals import Layout, fit_tree
from medsynx.privacy import calibrate
from medsynx.samplers import open_sampler
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY, small_table

FAMILY = get_family("marginals")
CAPPED = parse_study({**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "max_records_per_patient": 3}})
SIZES = codec.sizes(CAPPED)
records = st.lists(st.tuples(*(st.integers(0, k - 1) for k in SIZES)), min_size=1, max_size=3)


def contribution(study, codes):
    plan = calibrate(study.privacy, FAMILY.plan(study))
    codes = np.array(codes, np.int64).reshape(-1, len(SIZES))
    return FAMILY.contribute(study, plan.steps[0], State(), Patients(codes, np.zeros(len(codes), np.int64)), {}).arrays[
        "sum"
    ]


@settings(max_examples=80, deadline=None)
@given(records, st.booleans())
def test_no_patient_moves_the_sum_further_than_the_stated_sensitivity(rows, repeat):
    """Worst case included: all of a patient's records alike."""
    rows = [rows[0]] * 3 if repeat else rows
    alone, nobody = contribution(CAPPED, rows), contribution(CAPPED, [])
    stated = FAMILY.plan(CAPPED)[0].sensitivity
    moved = (alone - nobody).astype(float)
    assert np.linalg.norm(moved) <= stated.l2 * (1 + 1e-12) and np.abs(moved).max() <= stated.linf
    if repeat:
        assert np.linalg.norm(moved) == pytest.approx(stated.l2), "the bound is reached: it could not be smaller"


def fitted(study, codes, noise_std=0.0, seed=0):
    layout = Layout(study)
    noise = np.random.default_rng(seed).normal(0, noise_std, layout.length).round() if noise_std else 0
    state = FAMILY.combine(study, None, State(), Total({"sum": layout.count(codes) + noise}, noise_std, 2))
    assert FAMILY.next_step(study, state) is None
    artefact = FAMILY.export(study, state)
    return open_sampler(artefact.sampler, artefact.files, study).sample(20_000, np.random.default_rng(1))


def tvd2(a, b, sizes):
    def table(x, i, j):
        return np.bincount(x[:, i] * sizes[j] + x[:, j], minlength=sizes[i] * sizes[j]) / len(x)

    pairs = [(i, j) for i in range(len(sizes)) for j in range(i)]
    return np.mean([np.abs(table(a, i, j) - table(b, i, j)).sum() / 2 for i, j in pairs])


def test_without_noise_it_learns_the_pairs_and_noise_costs_little(study):
    codes = codec.encode(small_table(4000, 3), study)[0]
    sizes = codec.sizes(study)
    shuffled = np.stack([np.random.default_rng(j).permutation(codes[:, j]) for j in range(codes.shape[1])], axis=1)
    independent, clean = tvd2(shuffled, codes, sizes), tvd2(fitted(study, codes), codes, sizes)
    assert clean < 0.5 * independent and clean < 0.05
    noisy = tvd2(fitted(study, codes, noise_std=3.73 * Layout(study).sensitivity(1).l2), codes, sizes)
    assert clean <= noisy < independent


def test_pure_noise_gives_a_valid_sampler(study):
    """Fewer patients than noise: tables go negative everywhere, yet every row drawn is inside the dictionary."""
    layout = Layout(study)
    for seed in range(5):
        vector = np.random.default_rng(seed).normal(0, 50 * layout.unit_two, layout.length)
        for new, _given, cdf in fit_tree(layout, vector, 50.0 * layout.unit_two):
            assert np.isfinite(cdf).all() and (np.diff(cdf, axis=1) >= -1e-12).all() and np.allclose(cdf[:, -1], 1), new


def test_cell_budget_keeps_target_pairs_first(raw_study):
    raw_study["family"]["parameters"] = {"cell_budget": 120}
    layout = Layout(parse_study(raw_study))
    assert sum(layout.sizes[a] * layout.sizes[b] for a, b in layout.pairs) <= 120
    assert layout.pairs and sum(4 in p for p in layout.pairs) >= len(layout.pairs) - 1


def test_same_seed_same_rows(study):
    codes = codec.encode(small_table(500, 3), study)[0]
    assert (fitted(study, codes) == fitted(study, codes)).all()
