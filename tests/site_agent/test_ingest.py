import numpy as np
import pandas as pd
import pytest

from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from medsynx.tables import read_table, write_table
from site_agent.ingest import HOLDOUT_SHARE, prepare
from tests.conftest import small_table

KEY = b"k" * 32


@pytest.fixture
def visits(raw_study):
    """A study with a patient id and up to two records a patient."""
    raw_study["columns"] = {"who": {"type": "patient-id"}, **raw_study["columns"]}
    raw_study["privacy"]["max_records_per_patient"] = 2
    return parse_study(raw_study)


def visit_table(patients: int, each: int) -> pd.DataFrame:
    table = small_table(patients * each, 5)
    table.insert(0, "who", [f"P{i % patients:04d}" for i in range(len(table))])
    return table


def by_row(patients):
    return sorted(map(tuple, patients.codes.tolist()))


@pytest.mark.parametrize("named", [False, True])
def test_removing_a_patient_changes_nobody_elses_part(study, visits, named):
    s = visits if named else study
    table = visit_table(150, 2) if named else small_table(300, 2)
    whole = prepare(table, s, KEY)
    gone = table[table["who"] == "P0007"].index if named else [17]
    rest = prepare(table.drop(index=gone), s, KEY)
    for part in ("train", "holdout", "all"):
        a, b = by_row(whole.parts[part]), by_row(rest.parts[part])
        missing = list(a)
        for row in b:
            missing.remove(row)
        assert len(missing) <= len(gone)
    sizes = {p: len(whole.parts[p].codes) - len(rest.parts[p].codes) for p in ("train", "holdout")}
    assert sorted(sizes.values()) == [0, len(gone)], "all of the patient's rows leave one part, and only that one"


def test_equal_rows_are_patients_of_their_own(study):
    table = pd.concat([small_table(1, 1)] * 400, ignore_index=True)
    parts = prepare(table, study, KEY).parts
    assert parts["all"].count == 400
    assert 0.12 * 400 < parts["holdout"].count < 0.28 * 400


def test_split_is_fixed_by_the_key_and_about_a_fifth(study):
    table = small_table(2000, 3)
    one, again, other = (prepare(table, study, k).parts for k in (KEY, KEY, b"x" * 32))
    assert by_row(one["holdout"]) == by_row(again["holdout"]) != by_row(other["holdout"])
    share = one["holdout"].count / 2000
    assert abs(share - HOLDOUT_SHARE) < 0.04
    assert one["train"].count + one["holdout"].count == one["all"].count == 2000


def test_a_patients_records_stay_together_and_are_capped(visits):
    table = visit_table(100, 4)
    local = prepare(table.sample(frac=1, random_state=1), visits, KEY)
    counts = np.bincount(local.parts["all"].patient)
    assert local.parts["all"].count == 100 and counts.max() == 2 and local.capped == 200
    assert by_row(local.parts["all"]) == by_row(prepare(table, visits, KEY).parts["all"]), (
        "which rows stay does not depend on their order"
    )


@pytest.mark.parametrize(
    ("change", "strict", "code"),
    [
        (lambda t: pd.concat([t, t, t]), True, "patient-duplicate"),
        (lambda t: t.assign(who=""), False, "column-missing"),
    ],
)
def test_bad_patient_ids(visits, change, strict, code):
    with pytest.raises(MedsynxError) as caught:
        prepare(change(visit_table(30, 1)), visits, KEY, strict=strict)
    assert caught.value.code == code


def test_too_few_patients(study):
    with pytest.raises(MedsynxError) as caught:
        prepare(small_table(19, 1), study, KEY).require(20)
    assert caught.value.code == "patients-too-few" and "19" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("age,sex\nJos\u00e9,F\n".encode("latin-1"), "table-unreadable"),
        (b"", "table-empty"),
        (b"age,sex\n", "table-empty"),
        (b'a,b\n"1,2\n3,4,5\n', "table-unreadable"),
        (None, "table-unreadable"),
    ],
)
def test_bad_files(tmp_path, content, code):
    file = tmp_path / "t.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MedsynxError) as caught:
        read_table(file)
    assert caught.value.code == code and "t.csv" in caught.value.message


def test_csv_and_parquet_give_the_same_patients(tmp_path, study):
    table = small_table(300, 9)
    for name in ("t.csv", "t.parquet"):
        write_table(tmp_path / name, iter([table[:100], table[100:]]))
    a, b = (prepare(read_table(tmp_path / n), study, KEY).parts["train"] for n in ("t.csv", "t.parquet"))
    assert by_row(a) == by_row(b)


def test_the_sites_name_is_a_column_where_the_study_asks_for_it(raw_study):
    raw_study["columns"]["hospital"] = {"type": "categorical", "levels": ["north", "south"], "role": "site"}
    with_site, table = parse_study(raw_study), small_table(60, 1)
    named = prepare(table, with_site, KEY, site="south")
    assert (named.parts["all"].codes[:, -1] == 1).all()
    assert (prepare(table, with_site, KEY, site="east").parts["all"].codes[:, -1] == 2).all(), "unknown: other"
    own = prepare(table.assign(hospital="north"), with_site, KEY, site="south")
    assert (own.parts["all"].codes[:, -1] == 0).all(), "the table's own column goes first"
    del raw_study["columns"]["hospital"]
    without = prepare(table, parse_study(raw_study), KEY)
    same = (named.parts["train"].codes[:, :5] == without.parts["train"].codes).all()
    assert same, "a patient's part does not depend on the study asking for it"
