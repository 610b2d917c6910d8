"""What hurts a table synthesiser in hospitals: each a clear error or a stated behaviour."""

import numpy as np
import pandas as pd
import pytest

from evaluation.programme import priced_plan
from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators.marginals import schedule
from medsynx.study import parse_study
from site_agent.ingest import prepare
from tests.conftest import RAW_STUDY, small_table
from tests.medsynx.test_marginals import drawn, run

KEY = b"k" * 32


def study_of(patients=100_000, columns=None, **privacy):
    return parse_study(
        {
            **RAW_STUDY,
            "columns": {**RAW_STUDY["columns"], **(columns or {})},
            "family": {"name": "marginals", "parameters": {"patients": patients}},
            "privacy": {**RAW_STUDY["privacy"], **privacy},
        }
    )


def through(study, frame, rows=5000):
    """A table as a hospital has it, to synthetic rows as a researcher gets them."""
    local = prepare(frame, study, KEY)
    return codec.decode(
        drawn(study, run(study, local.parts["all"].codes), rows), study, np.random.default_rng(0)
    ), local


def test_a_constant_column_stays_constant():
    made, _ = through(study_of(), small_table(3000, 1).assign(sex="F"))
    assert (made.sex == "F").mean() > 0.97


def test_a_column_that_is_all_missing_stays_missing():
    made, local = through(study_of(), small_table(3000, 1).assign(marker=""))
    assert made.marker.isna().mean() > 0.97 and local.report.missing["marker"] == 3000


def test_a_column_of_one_level():
    made, _ = through(
        study_of(columns={"ward": {"type": "categorical", "levels": ["A"]}}), small_table(3000, 1).assign(ward="A")
    )
    assert (made.ward == "A").mean() > 0.97


def test_heavy_skew_keeps_the_common_value_and_invents_few_rare_ones():
    cost = np.where(np.random.default_rng(0).random(3000) < 0.99, 1.0, 9e5)
    study = study_of(columns={"cost": {"type": "numeric", "bounds": [0, 1e6], "edges": [10, 100, 1000, 10_000]}})
    made, _ = through(study, small_table(3000, 1).assign(cost=cost.astype(str)))
    assert 0.96 < (made.cost < 10).mean() <= 1 and made.cost.between(10, 10_000).mean() < 0.03


def test_a_hundred_thousand_levels_are_refused_with_the_limit():
    with pytest.raises(MedsynxError) as caught:
        study_of(columns={"id": {"type": "categorical", "levels": [str(k) for k in range(100_000)]}})
    assert caught.value.code == "study-invalid" and "1000" in caught.value.details[0]


def test_twenty_patients_get_single_columns_and_the_target_and_are_told():
    study = study_of(patients=20)
    assert schedule(study).course == "star" and "too few patients" in schedule(study).reason
    made, _ = through(study, small_table(20, 1), 200)
    assert len(made) == 200


@pytest.mark.parametrize("privacy", [{"epsilon": -1}, {"epsilon": 0}, {"delta": 0}, {"delta": 0.5}])
def test_budgets_that_promise_nothing_are_refused(privacy):
    with pytest.raises(MedsynxError) as caught:
        study_of(**privacy)
    assert next(iter(privacy)) in caught.value.details[0]


def test_a_delta_above_one_in_n_is_refused():
    """Such a delta would let a mechanism publish one patient in n whole."""
    with pytest.raises(MedsynxError) as caught:
        study_of(patients=100_000, delta=1e-3)
    assert "privacy.delta" in caught.value.details[0] and "100,000" in caught.value.details[0]
    study_of(patients=900, delta=1e-3)


def test_an_event_before_follow_up_begins_is_clipped_into_the_first_bin_and_told():
    columns = {
        "days": {"type": "numeric", "bounds": [0, 100], "bins": 5, "role": "survival_time"},
        "died": {"type": "categorical", "levels": ["no", "yes"], "role": "event"},
    }
    days = np.arange(3000) % 90 - 10
    table = small_table(3000, 1).assign(days=days.astype(str), died="yes")
    made, local = through(study_of(columns=columns), table)
    assert local.report.clipped["days"] == int((days < 0).sum()) and made.days.min() >= 0


def test_a_site_whose_rows_all_fall_outside_the_dictionary_is_counted_and_harmless():
    wrong = small_table(300, 1).assign(age="5000", sex="?!", grade="IV", marker="-3", ill="perhaps")
    study = study_of()
    local = prepare(wrong, study, KEY)
    assert local.report.clipped["age"] == local.report.other["sex"] == local.report.other["ill"] == 300
    with pytest.raises(MedsynxError) as caught:
        prepare(wrong, study, KEY, strict=True)
    assert caught.value.code == "level-unknown" and "IV" not in str(caught.value)
    both = pd.concat([small_table(3000, 2), wrong])
    made, _ = through(study, both)
    assert 0.05 < (made.sex == "other").mean() < 0.13, "they are there, as what they are"


def test_a_budget_too_strict_for_any_table_still_ends_in_a_plan():
    assert priced_plan(study_of(epsilon=0.01)).steps
