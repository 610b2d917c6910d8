import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from evaluation import direct, federated, fidelity, gate, scorecard, utility
from evaluation.programme import full_plan, priced_plan
from medsynx import codec
from medsynx.generators.base import Patients, State, Total
from medsynx.privacy import epsilon_of_plan
from medsynx.study import GateSpec, parse_study
from medsynx.target import target
from tests.conftest import RAW_STUDY, small_table

CAPPED = parse_study({**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "max_records_per_patient": 3}})
AVERAGED = CAPPED.model_copy(update={"privacy": CAPPED.privacy.model_copy(update={"records": "averaged"})})
ROLES = {"age": "survival_time", "ill": "event", "sex": "treatment"}
FOLLOWED = parse_study(
    {
        **RAW_STUDY,
        "columns": {n: {**c, "role": ROLES.get(n, "feature")} for n, c in RAW_STUDY["columns"].items()},
        "privacy": {**RAW_STUDY["privacy"], "max_records_per_patient": 3},
    }
)
SIZES = codec.sizes(CAPPED)
records = st.lists(st.tuples(*(st.integers(0, k - 1) for k in SIZES)), min_size=1, max_size=3)
JUDGE = federated.Evaluation()


def cards(study):
    width = sum(codec.sizes(study)[j] for j in target(study).predictors)
    rng = np.random.default_rng(0)
    return State({n: rng.normal(size=width).astype(np.float32) for n in ("synthetic", "real")})


def contribution(study, name, rows, state):
    codes = np.array(rows, np.int64).reshape(-1, len(SIZES))
    priced = priced_plan(study).find(name)
    return (
        JUDGE.contribute(study, priced, state, Patients(codes, np.zeros(len(codes), np.int64)), {})
        .arrays["sum"]
        .astype(float)
    )


@pytest.mark.parametrize("study", [CAPPED, AVERAGED, FOLLOWED], ids=["capped", "averaged", "survival"])
@settings(max_examples=60, deadline=None)
@given(rows=records, repeat=st.booleans(), name=st.sampled_from([federated.REFERENCE, federated.HOLDOUT]))
def test_no_patient_moves_an_evaluation_further_than_stated(study, rows, repeat, name):
    rows = [rows[0]] * 3 if repeat else rows
    state = cards(study)
    moved = contribution(study, name, rows, state) - contribution(study, name, [], state)
    stated = priced_plan(study).find(name).step.sensitivity
    assert np.linalg.norm(moved) <= stated.l2 * (1 + 1e-12) and np.abs(moved).max() <= stated.linf


def judged(study, codes, synthetic, noise_std=0.0, seed=0):
    """The whole federated evaluation over one site, half of the rows on each part."""
    state, rng = federated.start(study, synthetic), np.random.default_rng(seed)
    for rows in (codes[::2], codes[1::2]):
        step = JUDGE.next_step(study, state)
        priced = priced_plan(study).find(step.name)
        total = JUDGE.contribute(study, priced, state, Patients(rows, np.arange(len(rows))), {}).arrays["sum"]
        noise = rng.normal(0, noise_std * step.sensitivity.l2, total.shape)
        state = JUDGE.combine(study, priced, state, Total({"sum": total + noise}, noise_std * step.sensitivity.l2, 1))
    assert JUDGE.next_step(study, state) is None
    return state


@pytest.fixture
def real(study):
    return codec.encode(small_table(6000, 1), study)[0]


def test_without_noise_the_federated_figures_are_the_direct_ones(study, real):
    synthetic = codec.encode(small_table(6000, 2), study)[0]
    found = federated.figures(study, judged(study, real, synthetic), synthetic)
    holdout = real[1::2]
    assert found["tvd1"]["noisy"] == pytest.approx(fidelity.mean_tvd1(holdout, synthetic, codec.sizes(study)), abs=1e-6)
    task, sizes = target(study), codec.sizes(study)
    card = scorecard.weights(scorecard.class_tables(synthetic, sizes, task))
    y = task.classes(holdout)
    expected = roc_auc_score(y[y >= 0], scorecard.score_bins(holdout, sizes, task, card)[y >= 0])
    assert found["tstr_auc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert abs(found["tstr_auc"]["value"] - found["trtr_auc"]["value"]) < 0.02
    assert found["tvd1"]["value"] < 0.02 and found["tvd2"]["value"] < 0.03, (
        "two draws of the same population differ by the floor only"
    )


def test_a_bad_generator_shows_through_the_noise(study, real):
    shuffled = np.stack([np.random.default_rng(j).permutation(real[:, j]) for j in range(real.shape[1])], axis=1)
    good = federated.figures(study, judged(study, real, real, noise_std=2.0), real)
    bad = federated.figures(study, judged(study, real, shuffled, noise_std=2.0), shuffled)
    assert bad["tvd2"]["value"] > good["tvd2"]["value"] + 0.05
    assert bad["tstr_auc"]["value"] < good["tstr_auc"]["value"] - 0.2
    assert bad["trtr_auc"]["value"] == pytest.approx(good["trtr_auc"]["value"], abs=0.05)


def test_survival_curves_are_compared_through_the_noise(real):
    direct_ones = direct.figures(FOLLOWED, real[1::2], real, real[:500])["km"]
    exact = federated.figures(FOLLOWED, judged(FOLLOWED, real, real[:500]), real[:500])["km"]
    assert exact["noisy"] == pytest.approx(direct_ones["value"], abs=1e-9) and exact["reliable"]
    wrong = real.copy()
    wrong[:, 4] = wrong[::-1, 4]  # events that no longer go with the time
    found = {
        name: federated.figures(FOLLOWED, judged(FOLLOWED, real, rows, noise_std=1.0), rows)["km"]
        for name, rows in (("good", real), ("bad", wrong))
    }
    assert found["good"]["value"] < 0.03 < 0.06 < found["bad"]["value"]
    assert found["good"]["value"] <= 2 * found["good"]["resolution"]
    drowned = federated.figures(FOLLOWED, judged(FOLLOWED, real[:60], real, noise_std=50.0), real)["km"]
    assert not drowned["reliable"]


def test_drowned_figures_say_so(study, real):
    found = federated.figures(study, judged(study, real[:200], real, noise_std=50.0), real)
    assert not found["tvd2"]["reliable"] and not found["tstr_auc"]["reliable"]
    assert gate.check(GateSpec(max_tvd2=1.0), found)["passed"] is False, "an unreliable figure never opens the gate"


def test_gate_fails_closed():
    figures = {"tvd2": {"value": 0.1}, "tstr_auc": {"value": None}}
    assert gate.check(GateSpec(), None) == {"passed": True, "checks": []}
    assert (
        gate.check(GateSpec(max_tvd2=0.2), figures)["passed"]
        and not gate.check(GateSpec(max_tvd2=0.05), figures)["passed"]
    )
    assert not gate.check(GateSpec(min_tstr_auc=0.5), figures)["passed"]
    assert (
        not gate.check(GateSpec(max_tvd1=0.9), figures)["passed"]
        and not gate.check(GateSpec(max_tvd1=0.9), None)["passed"]
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15)), min_size=2, max_size=60).filter(
        lambda r: len({a for a, _ in r}) == 2
    )
)
def test_auc_of_a_histogram_is_that_of_the_scores(rows):
    histogram = np.zeros((2, 16))
    for label, at in rows:
        histogram[label, at] += 1
    assert scorecard.auc(histogram) == pytest.approx(roc_auc_score(*zip(*rows, strict=True)))


def test_distances_are_distances():
    rng = np.random.default_rng(1)
    a, b, c = rng.random(9), rng.random(9), rng.random(9)
    assert fidelity.tvd(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert fidelity.tvd(a, b) == pytest.approx(fidelity.tvd(b, a))
    assert fidelity.tvd(a, b) <= fidelity.tvd(a, c) + fidelity.tvd(c, b)


def test_the_programme_spends_the_budget_once_and_no_more(study, raw_study):
    assert 0.99 * 2 < epsilon_of_plan(priced_plan(study), 1e-5) <= 2.0
    raw_study["evaluation"] = {"federated": False}
    alone = parse_study(raw_study)
    assert {s.part for s in full_plan(alone)} == {"all"}, "without an evaluation nobody is held out"
    assert 0.99 * 2 < epsilon_of_plan(priced_plan(alone), 1e-5) <= 2.0


@pytest.mark.parametrize(
    ("column", "positive"),
    [
        ({"type": "ordinal", "levels": ["0", "1", "2"], "role": "target"}, (1, 2)),
        ({"type": "categorical", "levels": ["a", "b", "c"], "positive": ["b"], "role": "target"}, (1,)),
        ({"type": "boolean", "role": "event"}, (1,)),
        ({"type": "numeric", "bounds": [0, 4], "bins": 4, "role": "target"}, (2, 3)),
        ({"type": "categorical", "levels": ["a", "b", "c"], "role": "target"}, None),
    ],
)
def test_what_counts_as_the_event(raw_study, column, positive):
    raw_study["columns"]["ill"] = column
    found = target(parse_study(raw_study))
    assert (found.positive if found else None) == positive


def test_follow_up_time_is_no_predictor(raw_study):
    raw_study["columns"]["ill"] = {"type": "boolean", "role": "event"}
    raw_study["columns"]["age"]["role"] = "survival_time"
    assert target(parse_study(raw_study)).predictors == (1, 2, 3)


def test_direct_figures_say_that_they_are_not_private(study, real):
    found = direct.figures(study, real[:3000], real[3000:], real[:3000])
    assert found["tvd2"]["value"] == 0 < found["tvd2"]["floor"]
    assert found["tstr_auc"]["value"] == found["trtr_auc"]["value"] > 0.6
    assert all("not private" in f["source"] for f in found.values())
    lonely = direct.figures(study, real[real[:, 4] == 0], real, real[real[:, 4] == 0])
    assert lonely["trtr_auc"]["value"] is None and "one class" in lonely["trtr_auc"]["why"]


def test_a_scorecard_that_does_not_fit_fails_for_every_table_alike(study, real):
    good = cards(study)
    priced = priced_plan(study).find(federated.HOLDOUT)
    short = State({**good.arrays, "real": good.arrays["real"][:-1]})
    odd = State({**good.arrays, "real": np.full_like(good.arrays["real"], np.nan)})
    for rows in (real[:0], real[:1], real):
        for state in (short, odd):
            with pytest.raises(ValueError, match="does not fit"):
                JUDGE.contribute(study, priced, state, Patients(rows, np.arange(len(rows))), {})


def test_every_score_has_a_bin():
    found = scorecard.binned(np.array([np.nan, np.inf, -np.inf, -99.0, 0.0]))
    assert found.tolist() == [8, 15, 0, 0, 8]


def test_noise_does_not_pull_the_auc_towards_one_half():
    at = np.arange(16)
    shapes = np.stack([np.exp(-((at - 6) ** 2) / 8), np.exp(-((at - 11) ** 2) / 8)])
    clean = shapes / shapes.sum(axis=1, keepdims=True) * [[1050], [450]]
    rng = np.random.default_rng(3)
    seen = [scorecard.auc(clean + rng.normal(0, 10, clean.shape)) for _ in range(400)]
    assert np.mean(seen) == pytest.approx(scorecard.auc(clean), abs=0.01)
    found = federated.noisy_auc(clean + rng.normal(0, 10, clean.shape), 10, rng)
    assert found["plus_minus"] == pytest.approx(np.std(seen), rel=0.5), "the stated +- is the noise's"
    assert federated.noisy_auc(clean + rng.normal(0, 5, clean.shape), 5, rng)["reliable"]
    drowned = [federated.noisy_auc(clean + rng.normal(0, 30, clean.shape), 30, rng) for _ in range(50)]
    assert not any(f["reliable"] for f in drowned), "also where the area is clipped at 1"
    values = [f["value"] for f in drowned if f["value"] is not None]
    assert max(values) == 1 and min(values) >= 0


def test_a_distance_finer_than_the_noise_does_not_open_the_gate(study, real):
    found = federated.figures(study, judged(study, real, real, noise_std=4.0), real)["tvd2"]
    assert found["reliable"] and 0 < found["resolution"] < 0.2
    lucky = {"tvd2": {**found, "value": 0.0}}
    assert not gate.check(GateSpec(max_tvd2=found["resolution"] * 0.9), lucky)["passed"]
    assert gate.check(GateSpec(max_tvd2=found["resolution"] * 1.1), lucky)["passed"]


@given(st.integers(3, 1002))
def test_coarse_groups_are_few_and_even_and_missing_joins_the_last(size):
    groups = federated.coarse_map(size)
    present = np.bincount(groups[:-1])
    assert len(groups) == size and (np.diff(groups) >= 0).all() and groups[-1] == groups[-2]
    assert 2 <= len(present) <= federated.COARSE and present.max() - present.min() <= 1


@given(st.integers(1, 80))
@settings(deadline=None)
def test_chosen_pairs_leave_no_column_out(columns):
    pairs = federated.chosen_pairs(columns)
    assert len(set(pairs)) == len(pairs) == min(federated.MAX_PAIRS, columns * (columns - 1) // 2)
    assert all(a < b for a, b in pairs)
    uses = np.bincount(np.ravel(pairs).astype(int), minlength=columns)
    assert uses.max() - uses.min() <= 2


codes = st.lists(st.tuples(*(st.integers(0, k - 1) for k in SIZES)), min_size=1, max_size=20).map(
    lambda rows: np.array(rows, np.int64)
)


@settings(max_examples=50, deadline=None)
@given(codes, codes)
def test_pairs_are_at_least_as_far_apart_as_their_columns(a, b):
    one = [fidelity.tvd(x, y) for x, y in zip(fidelity.one_way(a, SIZES), fidelity.one_way(b, SIZES), strict=True)]
    for (i, j), distance in fidelity.pair_tvds(a, b, SIZES).items():
        assert max(one[i], one[j]) - 1e-9 <= distance <= 1 + 1e-9
    assert fidelity.mean_tvd2(a, a, SIZES) == 0


def test_missing_numbers_are_gaps_to_the_learner_and_missing_levels_are_levels(study):
    task = target(study)
    full = np.array([[k - 1 for k in codec.sizes(study)]])
    gaps = dict(zip(task.predictors, np.isnan(utility._features(study, task, full))[0], strict=True))
    assert gaps == {0: True, 1: False, 2: True, 3: True}
