"""Constraints of the dictionary: no synthetic row breaks one, and contradictions are told before anything runs."""

import numpy as np
import pandas as pd
import pytest

from medsynx import codec
from medsynx.constraints import respected
from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY
from tests.medsynx.test_marginals import COURSES, drawn, run

COLUMNS = {
    "sex": {"type": "categorical", "levels": ["F", "M"]},
    "pregnant": {"type": "categorical", "levels": ["no", "yes"]},
    "age": {"type": "numeric", "bounds": [0, 100], "bins": 10, "integer": True},
    "entry": {"type": "date", "origin": "2000-01-01", "bounds": [0, 1000], "bins": 5},
    "visit": {"type": "date", "origin": "2000-06-01", "bounds": [-200, 1000], "bins": 7},
    "exit": {"type": "date", "origin": "2000-01-01", "bounds": [0, 1500], "bins": 4},
    "before": {"type": "numeric", "bounds": [0, 10], "bins": 5},
    "after": {"type": "numeric", "bounds": [0, 10], "bins": 4},
    "ill": {"type": "boolean", "levels": ["no", "yes"], "role": "target"},
}
CONSTRAINTS = [
    {"impossible": {"sex": "M", "pregnant": "yes"}},
    {"impossible": {"age": {"min": 60}, "pregnant": ["yes"]}},
    {"order": ["entry", "visit"]},
    {"order": ["visit", "exit"]},
    {"order": ["before", "after"]},
]


def study_with(constraints, patients=100_000, columns=COLUMNS):
    family = {"name": "marginals", "parameters": {"patients": patients}}
    return parse_study({**RAW_STUDY, "columns": columns, "family": family, "constraints": constraints})


@pytest.mark.parametrize("course", COURSES)
def test_no_synthetic_row_breaks_a_constraint_whatever_the_noise(course):
    """Real records that break them are counted like others: random codes, so most rows do."""
    study = study_with(CONSTRAINTS, {"pairs": 100_000, "halves": 1000, "star": 20}[course])
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, k, 3000) for k in codec.sizes(study)], axis=1)
    assert respected(codes, study).mean() < 0.5
    rows = drawn(study, run(study, codes), 20_000)
    assert respected(rows, study).all()
    frame = codec.decode(rows, study, np.random.default_rng(1))
    assert (codec.encode(frame.astype(object).where(frame.notna(), ""), study)[0] == rows).all(), (
        "values stay in their bins"
    )
    assert not ((frame.sex == "M") & (frame.pregnant == "yes")).any()
    entry, visit, exit_ = (pd.to_datetime(frame[n]) for n in ("entry", "visit", "exit"))
    assert not (entry > visit).any() and not (visit > exit_).any() and not (entry > exit_).any()
    assert not (frame.before > frame.after).any() and (frame.before < frame.after).mean() > 0.3


@pytest.mark.parametrize(
    ("constraints", "fragment"),
    [
        ([{"order": ["age", "height"]}], "constraints.0: no column height"),
        ([{"order": ["age", "sex"]}], "constraints.0: an order needs two"),
        ([{"order": ["age", "age"]}], "constraints.0: an order needs two"),
        ([{"impossible": {"sex": "X"}}], "columns.sex: no such level"),
        ([{"impossible": {"sex": ["F", "M"]}}], "no value of sex is left"),
        ([{"impossible": {"sex": ["F", "M", "other", None]}}], "no record at all"),
        (
            [{"impossible": {"sex": "F", "pregnant": p}} for p in ("no", "yes", "other", None)]
            + [{"impossible": {"sex": "M"}}],
            "sex is left",
        ),
        ([{"order": ["late", "early"]}], "every value of late is above"),
        ([{"impossible": {}}], "constraints"),
    ],
)
def test_contradictions_and_nonsense_are_told_by_study_check(constraints, fragment):
    columns = {
        **COLUMNS,
        "late": {"type": "numeric", "bounds": [50, 90], "bins": 4},
        "early": {"type": "numeric", "bounds": [0, 40], "bins": 4},
    }
    with pytest.raises(MedsynxError) as caught:
        study_with(constraints, columns=columns)
    assert caught.value.code == "study-invalid" and any(fragment in p for p in caught.value.details), (
        caught.value.details
    )
