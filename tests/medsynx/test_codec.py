import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY, small_table

DATED = parse_study(
    {
        **RAW_STUDY,
        "columns": {
            **RAW_STUDY["columns"],
            "seen": {"type": "date", "origin": "2020-01-01", "bounds": [0, 1000], "bins": 5},
        },
    }
)
SIZES = codec.sizes(DATED)
code_rows = st.lists(st.tuples(*(st.integers(0, k - 1) for k in SIZES)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(code_rows, st.integers(0, 2**32 - 1))
def test_decode_then_encode_gives_the_codes_back(rows, seed):
    codes = np.array(rows, np.int64)
    frame = codec.decode(codes, DATED, np.random.default_rng(seed))
    assert (codec.encode(frame, DATED)[0] == codes).all()
    text = frame.astype(object).where(frame.notna(), "").astype(str)
    assert (codec.encode(text, DATED)[0] == codes).all(), "also after a trip through CSV"


@settings(max_examples=40, deadline=None)
@given(code_rows)
def test_one_hot_round_trip(rows):
    codes = np.array(rows, np.int64)
    tensor = codec.to_onehot(codes, DATED)
    assert tensor.shape == (len(codes), sum(SIZES)) and (tensor.sum(1) == len(SIZES)).all()
    assert (codec.from_onehot(tensor, DATED) == codes).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 199), st.integers(0, 199))
def test_no_code_depends_on_any_row_but_its_own(seed, i, j):
    """Encoding a row alone, in its table, and beside a changed neighbour gives the same codes."""
    study = parse_study(RAW_STUDY)
    table = small_table(200, seed)
    whole = codec.encode(table, study)[0]
    assert (codec.encode(table.iloc[[i]], study)[0][0] == whole[i]).all()
    changed = table.copy()
    changed.iloc[j] = ["90", "X", "3", "1e9", "yes"]
    again = codec.encode(changed, study)[0]
    others = np.arange(200) != j
    assert (again[others] == whole[others]).all()


def test_unseen_clipped_and_missing_are_counted(study):
    table = pd.DataFrame(
        {
            "age": ["17", "95", "40", ""],
            "sex": ["F", "diverse", " M ", "NA"],
            "grade": ["1", "2.0", "3", "7"],
            "marker": ["0", "10", "2.5", "?"],
            "ill": ["yes", "no", "perhaps", "yes"],
            "extra": ["a", "b", "c", "d"],
        }
    )
    codes, report = codec.encode(table, study)
    assert codes[:, 0].tolist() == [0, 5, 1, 6]
    assert codes[:, 1].tolist() == [0, 2, 1, 3]
    assert codes[:, 2].tolist() == [0, 1, 2, 3], "2.0 spells level 2; an unseen 7 is `other`"
    assert codes[:, 3].tolist() == [0, 3, 2, 4]
    assert codes[:, 4].tolist() == [1, 0, 2, 1]
    assert report.clipped == {"age": 2, "marker": 0}
    assert report.other == {"sex": 1, "grade": 1, "ill": 1}
    assert report.missing["age"] == report.missing["sex"] == report.missing["marker"] == 1
    assert report.dropped_columns == ["extra"]


@pytest.mark.parametrize(
    ("change", "strict", "code", "words"),
    [
        (lambda t: t.drop(columns="age"), False, "column-missing", "age"),
        (lambda t: t.assign(extra="x"), True, "column-unknown", "extra"),
        (lambda t: t.assign(sex="diverse"), True, "level-unknown", "columns.sex: 50 of 50"),
        (lambda t: t.assign(age="old"), False, "column-type", "columns.age: 50 of 50 cells are not numbers"),
        (lambda t: t.assign(marker="inf"), False, "value-not-finite", "columns.marker: 50 of 50"),
        (lambda t: t.iloc[:0], False, "table-empty", "no rows"),
    ],
)
def test_bad_tables(study, change, strict, code, words):
    with pytest.raises(MedsynxError) as caught:
        codec.encode(change(small_table(50, 1)), study, strict=strict)
    assert caught.value.code == code and words in caught.value.message


def test_nan_counts_as_missing_and_messages_hold_no_value(study):
    codes, _ = codec.encode(small_table(50, 1).assign(marker=np.nan), study)
    assert (codes[:, 3] == 4).all()
    with pytest.raises(MedsynxError) as caught:
        codec.encode(small_table(50, 1).assign(age="SECRET-NAME"), study)
    assert "SECRET" not in str(caught.value)


def test_other_and_missing_never_hide_behind_a_real_level(raw_study):
    raw_study["columns"]["sex"]["levels"] = ["other", "missing"]
    study = parse_study(raw_study)
    codes = np.zeros((4, 5), np.int64)
    codes[:, 1] = [0, 1, 2, 3]
    frame = codec.decode(codes, study, np.random.default_rng(0))
    assert frame["sex"].tolist()[:3] == ["other", "missing", "other_"] and frame["sex"][3] is None
