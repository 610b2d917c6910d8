import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import survival
from medsynx import codec
from medsynx.generators import get_family
from medsynx.generators.base import Patients, State, Total
from medsynx.generators.marginals import schedule
from medsynx.generators.schedule import Bins, median_splits
from medsynx.privacy import calibrate
from medsynx.samplers import open_sampler
from medsynx.secure_sum.noise import MIN_GRID
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY, small_table

FAMILY = get_family("marginals")
COURSES = {"pairs": 10_000, "halves": 280, "star": 20}  # expected patients that lead to each at epsilon 2
SIZES = codec.sizes(parse_study(RAW_STUDY))
MANY = st.lists(st.tuples(*(st.integers(0, k - 1) for k in SIZES)), min_size=1, max_size=7)


def study_of(course, **privacy):
    raw = {**RAW_STUDY, "family": {"name": "marginals", "parameters": {"patients": COURSES[course]}}}
    study = parse_study({**raw, "privacy": {**RAW_STUDY["privacy"], **privacy}})
    if not privacy:
        assert schedule(study).course == course
    return study


def states(study, rng):
    """A state before each step, with choices as a coordinator - honest or not - might make them."""
    plan = schedule(study)
    splits = np.array([rng.integers(1, k) for k in SIZES])
    scopes = [(a, b, -1) for a, b in plan.pairs]
    if plan.course == "pairs":
        scopes += [(0, 1, 2), (1, 2, 4)]
    chosen, cells = [], 0
    for k in rng.permutation(len(scopes))[: rng.integers(1, len(scopes) + 1)]:
        size = math.prod(SIZES[a] for a in scopes[k] if a >= 0)
        if cells + size <= plan.clique_cells:
            chosen.append(scopes[k])
            cells += size
    return State({"splits": splits, "chosen": np.array(chosen, np.int64).reshape(-1, 3)})


def moved(study, step, state, codes):
    priced = calibrate(study.privacy, FAMILY.plan(study)).find(step.name)
    others = np.array([[0] * len(SIZES), [1] * len(SIZES)], np.int64)  # two further patients of one record each

    def total(codes):
        patient = np.concatenate([np.zeros(len(codes), np.int64), [1, 2] if len(codes) else [0, 1]])
        rows = np.concatenate([np.array(codes, np.int64).reshape(-1, len(SIZES)), others])
        return FAMILY.contribute(study, priced, state, Patients(rows, patient), {}).arrays["sum"]

    return (total(codes) - total([])).astype(float)


@pytest.mark.parametrize("records", ["capped", "averaged"])
@pytest.mark.parametrize("course", COURSES)
@settings(max_examples=25, deadline=None)
@given(rows=MANY, alike=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_no_patient_moves_any_step_further_than_its_stated_sensitivity(course, records, rows, alike, seed):
    """Every cargo of the family: any records, all alike or not, and any choice a coordinator may send along."""
    study = study_of(course, max_records_per_patient=7, records=records)
    parameters = study.family.parameters | {"patients": COURSES[course] * study.privacy.records_counted}
    study = study.with_family("marginals", parameters)
    assert schedule(study).course == course
    rows = [rows[0]] * 7 if alike else rows
    state = states(study, np.random.default_rng(seed))
    for step in FAMILY.plan(study):
        bound = step.sensitivity
        difference = moved(study, step, state, rows)
        assert np.linalg.norm(difference) <= bound.l2 * (1 + 1e-12) and np.abs(difference).max() <= bound.linf
        if alike:
            assert np.linalg.norm(difference) >= 0.8 * bound.l2 or step.name == "cliques", "the bound is nearly reached"


def test_averaged_records_weigh_a_patient_as_one():
    study = study_of("pairs", max_records_per_patient=7, records="averaged")
    step = FAMILY.plan(study)[0]
    alone = np.abs(moved(study, step, State(), [(0,) * 5])).sum()
    assert np.abs(moved(study, step, State(), [(0,) * 5] * 7)).sum() == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize(
    ("course", "choice"),
    [
        ("halves", {"splits": np.array([0, 1, 1, 1, 1])}),
        ("halves", {"splits": np.array([7, 1, 1, 1, 1])}),
        ("halves", {"splits": np.array([1, 1])}),
        ("pairs", {"chosen": np.array([[0, 1, -1], [0, 1, -1]])}),
        ("pairs", {"chosen": np.array([[1, 0, -1]])}),
        ("pairs", {"chosen": np.array([[0, 0, -1]])}),
        ("pairs", {"chosen": np.array([[0, 5, -1]])}),
        ("pairs", {"chosen": np.array([[-1, -1, -1]])}),
        ("pairs", {"chosen": np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 2, 3], [1, 2, 3], [0, 2, 4]])}),
        ("pairs", {"chosen": np.array([[0, 1, 2, 3]])}),
    ],
)
def test_a_choice_that_was_not_planned_is_refused_at_the_site(course, choice):
    """More cells than approved, a table twice (twice its sensitivity), columns that do not exist."""
    study = study_of(course)
    name = "halves" if "splits" in choice else "cliques"
    priced = calibrate(study.privacy, FAMILY.plan(study)).find(name)
    patients = Patients(np.zeros((1, 5), np.int64), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"split|clique|cells|columns"):
        FAMILY.contribute(study, priced, State(dict(choice)), patients, {})


def run(study, codes, noise=True, seed=0):
    """A whole run with seeded noise in place of the door's."""
    plan, state, rng = calibrate(study.privacy, FAMILY.plan(study)), State(), np.random.default_rng(seed)
    while (step := FAMILY.next_step(study, state)) is not None:
        priced = plan.find(step.name)
        exact = FAMILY.contribute(study, priced, state, Patients(codes, np.arange(len(codes))), {}).arrays["sum"]
        assert exact.shape == (step.size,) and priced.noise_std > MIN_GRID
        std = priced.noise_std if noise else 0.0
        noised = exact + np.rint(rng.normal(0, std, step.size)).astype(np.int64)
        state = FAMILY.combine(study, priced, state, Total({"sum": noised}, std, 2))
    return FAMILY.export(study, state)


def drawn(study, artefact, rows=20_000):
    return open_sampler(artefact.sampler, artefact.files, study).sample(rows, np.random.default_rng(1))


def tvd2(a, b, sizes):
    def table(x, i, j):
        return np.bincount(x[:, i] * sizes[j] + x[:, j], minlength=sizes[i] * sizes[j]) / len(x)

    pairs = [(i, j) for i in range(len(sizes)) for j in range(i)]
    return np.mean([np.abs(table(a, i, j) - table(b, i, j)).sum() / 2 for i, j in pairs])


def independent(codes):
    return np.stack([np.random.default_rng(j).permutation(codes[:, j]) for j in range(codes.shape[1])], axis=1)


def test_without_noise_it_learns_all_pairs_and_noise_costs_little():
    study = study_of("pairs")
    codes = codec.encode(small_table(4000, 3), study)[0]
    floor = tvd2(independent(codes), codes, SIZES)
    clean, noisy = (tvd2(drawn(study, run(study, codes, noise)), codes, SIZES) for noise in (False, True))
    assert clean < 0.1 * floor and clean <= noisy < 0.4 * floor


@pytest.mark.parametrize("course", ["halves", "star"])
def test_the_other_courses_find_the_target_and_say_what_they_left_out(course):
    study = study_of(course)
    codes = codec.encode(small_table(COURSES["halves"] * 4, 3), study)[0]
    artefact = run(study, codes)
    assert tvd2(drawn(study, artefact), codes, SIZES) < 0.75 * tvd2(independent(codes), codes, SIZES)
    assert ("halves" if course == "halves" else "too few patients") in artefact.notes[0].lower()


def test_the_course_follows_patients_columns_and_epsilon_alone():
    def course(patients, epsilon, copies=1):
        columns = {f"{n}{k}": {**c, "role": "feature"} for k in range(copies) for n, c in RAW_STUDY["columns"].items()}
        family = {"name": "marginals", "parameters": {"patients": patients}}
        privacy = {**RAW_STUDY["privacy"], "epsilon": epsilon}
        return schedule(parse_study({**RAW_STUDY, "columns": columns, "family": family, "privacy": privacy})).course

    assert course(5000, 1.0) == "pairs" and course(5000, 1.0, copies=12) == "halves"
    assert course(5000, 10.0, copies=12) == "pairs" and course(30, 1.0) == "star" and course(5000, 0.01) == "star"


def test_three_columns_take_one_round_and_one_column_works(raw_study):
    raw_study["columns"] = {n: raw_study["columns"][n] for n in ("age", "sex", "ill")}
    assert [s.name for s in FAMILY.plan(parse_study(raw_study))] == ["tables"]
    raw_study["columns"] = {"age": raw_study["columns"]["age"]}
    study = parse_study(raw_study)
    codes = np.repeat(np.arange(7), 100)[:, None]
    assert drawn(study, run(study, codes)).shape == (20_000, 1)


def test_fewer_patients_than_expected_is_said():
    study = study_of("pairs")
    notes = run(study, codec.encode(small_table(900, 3), study)[0]).notes
    assert len(notes) == 2 and "expected" in notes[1]


def test_pure_noise_gives_a_valid_sampler():
    """Fewer patients than noise: tables go negative everywhere, yet every row drawn is inside the dictionary."""
    for course in COURSES:
        study = study_of(course)
        for seed in range(3):
            rows = drawn(study, run(study, np.zeros((20, 5), np.int64), seed=seed), 500)
            assert (rows >= 0).all() and (rows < np.array(SIZES)).all()


def test_a_wide_table_coarsens_its_widest_columns_to_the_cell_budget(raw_study):
    raw_study["columns"]["age"]["bins"] = 60
    raw_study["columns"]["town"] = {"type": "categorical", "levels": [f"t{k}" for k in range(1000)]}
    raw_study["family"]["parameters"] = {"cell_budget": 2000, "patients": 100_000}
    study = parse_study(raw_study)
    bins = Bins(study, 2000)
    starts = [bins.starts(j, k) for j, k in enumerate(bins.kept)]
    groups = [len(s) for s in starts]
    assert (sum(groups) ** 2 - sum(g * g for g in groups)) // 2 <= 2000
    assert groups[1] == 4, "narrow columns keep their levels"
    assert starts[0][-1] == 60 and starts[5][-2:] == (1000, 1001), "other and missing stay apart"
    first = schedule(study).first
    codes = codec.encode(small_table(400, 1).assign(town="t999"), study)[0]
    units = first.count(Patients(codes, np.arange(400)), study.privacy)
    for q, m in zip(first.queries, first.measurements(units, 0.0), strict=True):
        assert m.values.sum() == pytest.approx(400) and m.values.shape == q.shape
    assert (drawn(study, run(study, codes), 2000)[:, 5] >= 900).mean() > 0.9, "the level is found among a thousand"


def test_170_columns_stay_small_and_quick(raw_study):
    raw_study["columns"] = {f"c{k}": {"type": "numeric", "bounds": [0, 1], "bins": 8} for k in range(169)}
    raw_study["columns"]["ill"] = {"type": "boolean", "role": "target"}
    raw_study["privacy"]["epsilon"] = 1.0
    study = parse_study(raw_study)
    plan = schedule(study)
    assert plan.course == "halves" and max(s.size for s in plan.stages) * 4 < 256 * 1024
    rng = np.random.default_rng(0)
    ill = rng.integers(0, 2, 3000)
    codes = np.concatenate([(rng.integers(0, 5, (3000, 169)) + 3 * ill[:, None]), ill[:, None]], axis=1)
    rows = drawn(study, run(study, codes), 3000)
    found = [abs(np.corrcoef(rows[:, j], rows[:, 169])[0, 1]) for j in range(169)]
    assert np.median(found) > 0.3


def test_medians_split_a_noisy_margin_in_two():
    assert median_splits([np.array([5.0, -3, 5, 0]), np.array([0.0, 0, 9]), np.array([9.0, 0])]).tolist() == [1, 1, 1]


def test_same_seed_same_rows():
    study = study_of("pairs")
    artefact = run(study, codec.encode(small_table(500, 3), study)[0])
    assert (drawn(study, artefact) == drawn(study, artefact)).all()


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("arms", [False, True])
def test_time_event_and_treatment_are_always_measured_together(course, arms, raw_study):
    raw_study["columns"] |= {
        "days": {"type": "numeric", "bounds": [0, 100], "bins": 5, "role": "survival_time"},
        "died": {"type": "categorical", "levels": ["no", "yes"], "role": "event"},
        "arm": {"type": "categorical", "levels": ["a", "b"], "role": "treatment" if arms else "feature"},
    }
    patients = {"pairs": 100_000, "halves": 500, "star": 20}[course]
    raw_study["family"]["parameters"] = {"patients": patients}
    study = parse_study(raw_study)
    plan = schedule(study)
    assert plan.course == course and plan.survival == ((5, 6, 7) if arms else (5, 6))
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, k - 1, 4000) for k in plan.sizes], axis=1)
    codes[:, 6] = (codes[:, 5] < 2) ^ (codes[:, 7] == 1) if arms else codes[:, 5] < 2
    artefact = run(study, codes)
    assert any(set(plan.survival) <= set(t["columns"]) for t in artefact.sampler["tables"])
    rows = drawn(study, artefact)
    real, made, none = (survival.counts(c, study) for c in (codes, rows, independent(codes)))
    assert survival.distance(real, made, study) < 0.1 < survival.distance(real, none, study)


def test_kaplan_meier_by_hand(raw_study):
    raw_study["columns"] = {
        "days": {"type": "numeric", "bounds": [0, 3], "bins": 3, "role": "survival_time"},
        "died": {"type": "categorical", "levels": ["no", "yes"], "role": "event"},
    }
    study = parse_study(raw_study)
    codes = np.array([[0, 1], [0, 0], [1, 1], [2, 1], [2, 0], [3, 1], [1, 3]])
    table = survival.counts(codes, study)
    assert survival.curves(table)[0] == pytest.approx([4 / 5, 4 / 5 * 2 / 3, 4 / 5 * 2 / 3 / 2])
    assert survival.distance(table, table, study) == 0
    assert (survival.counts(codes, study, np.full(len(codes), 0.5)) == table / 2).all()


def test_the_two_classes_of_a_target_of_many_levels_are_never_merged(raw_study):
    """Thirty diagnoses beside `none`: too many cells for the noise, so levels are merged, but not over that border."""
    levels = ["none", *(f"d{k}" for k in range(30))]
    raw_study["columns"]["ill"] = {"type": "categorical", "levels": levels, "role": "target", "positive": levels[1:]}
    raw_study["family"]["parameters"], raw_study["privacy"]["epsilon"] = {"patients": 2200}, 1.0
    study = parse_study(raw_study)
    plan = schedule(study)
    wide = next(q for q in plan.first.queries if q.scope == (0, 4))
    assert plan.course == "pairs" and wide.starts[1][:2] == (0, 1) and len(wide.starts[1]) < 33
    assert plan.misplaced(wide.cells, 10, 0.54) < 0.5 < plan.misplaced(plan.sizes[0] * 33, 10, 0.54)
    rng = np.random.default_rng(0)
    marker = rng.integers(0, 4, 3000)
    ill = np.where(rng.random(3000) < 0.1 + 0.25 * marker, rng.integers(1, 31, 3000), 0)
    rest = [rng.integers(0, k - 1, 3000) for k in plan.sizes[:3]]
    codes = np.stack([*rest, marker, ill], axis=1)
    rows = drawn(study, run(study, codes, noise=True))
    rate = [(rows[rows[:, 3] == m, 4] > 0).mean() for m in (0, 3)]
    assert rate[0] < 0.25 and rate[1] > 0.7
