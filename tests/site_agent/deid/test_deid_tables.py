"""Tables: by the dictionary, nobody over 89, and nothing guessed where a file contradicts itself."""

from __future__ import annotations

import io
import json
from datetime import date

import numpy as np
import pandas as pd
import pytest

from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe, TableRules
from site_agent.deid.tabular import clean_table
from tests.site_agent.deid.helpers import FAMILY, KEY, MRN, OTHER, clean, image, smooth

STUDY = {
    "manifest": 1,
    "name": "visits",
    "columns": {
        "patient": {"type": "patient-id"},
        "age": {"type": "numeric", "bounds": [0, 110], "bins": 11, "integer": True},
        "sex": {"type": "categorical", "levels": ["F", "M"]},
        "visit": {"type": "date", "origin": "2010-01-01", "bounds": [0, 5000], "bins": 10},
        "zip": {"type": "categorical", "levels": ["10115", "03601", "80331"]},
        "ill": {"type": "boolean", "levels": ["no", "yes"], "role": "target"},
    },
    "family": {"name": "marginals"},
    "privacy": {"epsilon": 1.0, "delta": 1e-5},
}


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY))
    return Recipe(table=TableRules(study=file))


def frame(rows=40):
    return pd.DataFrame(
        {
            "patient": [MRN if i < 2 else f"X{i // 2}" for i in range(rows)],
            "age": [str(93 if i == 2 else 40 + i % 50) for i in range(rows)],
            "sex": ["F" if i % 3 else "M" for i in range(rows)],
            "visit": ["2019-03-04" if i == 0 else "2019-04-14" if i == 1 else "2018-01-01" for i in range(rows)],
            "zip": ["03601" if i == 3 else "10115" for i in range(rows)],
            "ill": ["yes" if i < 3 else "no" for i in range(rows)],
            "name": [f"{FAMILY} {i}" for i in range(rows)],
            "notes": [f"long story of {OTHER}"] * rows,
        }
    )


def as_bytes(table, form):
    buffer = io.BytesIO()
    if form == "csv":
        buffer.write(table.to_csv(index=False).encode())
    elif form == "parquet":
        table.to_parquet(buffer)
    else:
        table.to_excel(buffer, index=False)
    return buffer.getvalue()


def read_back(cleaned):
    read = (
        pd.read_parquet if cleaned.suffix == ".parquet" else lambda b: pd.read_csv(b, dtype=str, keep_default_na=False)
    )
    return read(io.BytesIO(cleaned.data))


@pytest.mark.parametrize("form", ["csv", "parquet", "xlsx"])
def test_a_table_by_its_dictionary(form, recipe):
    out = clean_table(as_bytes(frame(), form), "t.csv", recipe, KEY)
    table = read_back(out)
    assert list(table.columns) == list(STUDY["columns"])
    assert table["patient"][0] == table["patient"][1] == KEY.pseudonym("", MRN)
    assert table["age"][2] == "90" and table["age"][1] == "41" and table["visit"][2] == ""
    gap = pd.to_datetime(table["visit"][1]) - pd.to_datetime(table["visit"][0])
    assert gap.days == 41 and table["visit"][0] != "2019-03-04"
    for word in (FAMILY, OTHER, MRN):
        assert word.encode() not in out.data
    assert out.notes["small_cells"] == {"ill": 1, "zip": 1} and out.actions["column not in the dictionary dropped"] == 2
    assert len(out.patients) == 20


def test_table_and_dicom_agree_on_patient_and_dates(recipe):
    dicom = clean(image(smooth(64, 64).astype(np.uint8), StudyDate="20190304"))
    table = read_back(clean_table(as_bytes(frame(), "csv"), "t.csv", recipe, KEY))
    import pydicom

    ds = pydicom.dcmread(io.BytesIO(dicom.data))
    assert ds.PatientID == table["patient"][0] and ds.StudyDate == table["visit"][0].replace("-", "")


def test_small_zip_areas_become_000(recipe):
    table = read_back(clean_table(as_bytes(frame(), "csv"), "t.csv", recipe, KEY))
    assert table["zip"][3] == "000" and table["zip"][0] == "101"


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("age", "someone@brolenquist.org", "identifier-in-column"),
        ("sex", "0176 5551 2349", "identifier-in-column"),
        ("sex", "Anna Kyvorelat", "identifier-in-column"),
        ("zip", "x" * 300, "free-text"),
    ],
)
def test_identifiers_in_declared_columns_are_noticed(column, value, reason, recipe):
    table = frame()
    table.loc[table.index % 2 == 0, column] = value
    with pytest.raises(Quarantine) as refused:
        clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY)
    assert refused.value.reason == reason and value not in str(refused.value)


def test_a_stray_value_is_emptied(recipe):
    table = frame(200)
    table.loc[5, "sex"] = OTHER
    out = clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY)
    assert read_back(out)["sex"][5] == "" and out.actions["value without the declared form emptied"] == 1


def test_free_text_only_when_the_recipe_names_it(recipe):
    named = recipe.model_copy(update={"table": recipe.table.model_copy(update={"free_text": ("notes",)})})
    assert "notes" in read_back(clean_table(as_bytes(frame(), "csv"), "t.csv", named, KEY))
    with pytest.raises(Quarantine) as refused:
        clean_table(as_bytes(frame(), "csv"), "t.csv", Recipe(), KEY)
    assert refused.value.reason == "table-undeclared"


def test_rows_without_a_patient_are_quarantined(recipe):
    table = frame()
    table.loc[4, "patient"] = ""
    with pytest.raises(Quarantine) as refused:
        clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY)
    assert refused.value.reason == "patient-column"


def quarantined(data, recipe):
    with pytest.raises(Quarantine) as refused:
        clean_table(data, "t.csv", recipe, KEY)
    return refused.value.reason


def declared(tmp_path, **columns):
    """A recipe whose dictionary is the patient, the visit and these columns."""
    file = tmp_path / "other.json"
    own = {n: STUDY["columns"][n] for n in ("patient", "visit")}
    file.write_text(json.dumps({**STUDY, "columns": own | columns}))
    return Recipe(table=TableRules(study=file))


def number(upper, lower=0, **more):
    return {"type": "numeric", "bounds": [lower, upper], "bins": 4, **more}


def cleaned(recipe, **columns):
    rows = len(next(iter(columns.values())))
    table = pd.DataFrame({"patient": [f"Q{i}" for i in range(rows)]} | columns)
    return read_back(clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY))


@pytest.mark.parametrize(
    "line", ["77,M1,40,F,2019-01-01,10115,yes", "M1,40,F,2019-01-01", 'M1,4"0,F,"2019-01-01,10115']
)
@pytest.mark.parametrize("every", [False, True])
def test_rows_that_do_not_fit_the_header_are_not_guessed_at(line, every, recipe):
    head, good = "patient,age,sex,visit,zip,ill", "M2,40,F,2019-01-01,10115,yes"
    assert quarantined("\n".join([head, *([] if every else [good]), line, ""]).encode(), recipe) == "damaged"


@pytest.mark.parametrize("form", ["csv", "parquet", "xlsx"])
def test_a_name_used_twice_is_not_guessed_at(form, recipe):
    table = frame()
    table.insert(1, "patient", "P-1", allow_duplicates=True)
    if form == "parquet":  # pandas refuses to write what others write
        import pyarrow as pa
        from pyarrow import parquet

        buffer = io.BytesIO()
        names = list(table.columns)
        parquet.write_table(
            pa.Table.from_arrays([pa.array(table.iloc[:, i]) for i in range(len(names))], names), buffer
        )
        data = buffer.getvalue()
    else:
        data = as_bytes(table, form)
    assert quarantined(data, recipe) == "damaged"


def test_blank_lines_and_quoted_breaks_are_no_fault(recipe):
    text = (
        'patient,age,sex,visit,zip,ill,note\n\nM1,40,F,2019-01-01,10115,yes,"one\ntwo, three"\n \nM2,41,M,,80331,no,\n'
    )
    table = read_back(clean_table(text.encode(), "t.csv", recipe, KEY))
    assert table["age"].tolist() == ["40", "41"] and table["visit"][1] == ""


BIRTHS = {
    "date_of_birth": {"type": "date", "origin": "1900-01-01", "bounds": [0, 50000], "bins": 10},
    "DOB": {"type": "date", "origin": "1900-01-01", "bounds": [0, 50000], "bins": 10},
    "birth_month": number(12, 1),
    "birth_class": {"type": "categorical", "levels": ["1950-06-12", "x"]},
}


@pytest.mark.parametrize("name", BIRTHS)
def test_a_birth_date_never_leaves(name, tmp_path):
    value = "6" if name == "birth_month" else "1950-06-12"
    table = cleaned(declared(tmp_path, **{name: BIRTHS[name]}), visit=["2019-03-04"] * 3, **{name: [value] * 3})
    assert table[name].tolist() == [""] * 3 and table["visit"][0]
    free = declared(tmp_path).model_copy(update={"table": TableRules(study=tmp_path / "other.json", free_text=(name,))})
    assert name not in cleaned(free, visit=["2019-03-04"], **{name: [value]})


@pytest.mark.parametrize("name", ["birth_weight", "n_births", "born_abroad"])
def test_what_is_said_of_a_birth_is_no_birth_date(name, tmp_path):
    spec = {"type": "boolean", "levels": ["0", "1"]} if name == "born_abroad" else number(5000)
    assert cleaned(declared(tmp_path, **{name: spec}), visit=["2019-03-04"], **{name: ["1"]})[name].tolist() == ["1"]


def test_birth_years_become_decades_and_the_oldest_are_one(tmp_path):
    years = ["1911", "1899", "1953", "1967", str(date.today().year - 90)]
    table = cleaned(declared(tmp_path, birth_year=number(2030, 1850)), visit=["2019-03-04"] * 5, birth_year=years)
    first = str((date.today().year - 90) // 10 * 10)
    assert table["birth_year"].tolist() == [first, first, "1950", "1960", first]
    assert table["visit"].tolist()[:2] == ["", ""] and table["visit"][2] and table["visit"][3]


@pytest.mark.parametrize("kept", [True, False])
def test_dates_of_who_was_born_90_years_before_do_not_leave(kept, tmp_path):
    """Whether the dictionary has the column of births or not."""
    recipe = declared(tmp_path, **({"birth_date": BIRTHS["DOB"]} if kept else {}))
    table = cleaned(recipe, visit=["2019-03-04"] * 3, birth_date=["1929-03-04", "1929-03-05", "04.03.1928"])
    assert table["visit"][0] == "" and table["visit"][1] != "" and table["visit"][2] == ""


def test_an_age_in_one_row_and_a_date_in_another_give_no_age_over_89(tmp_path):
    recipe = declared(tmp_path, age=number(120))
    table = pd.DataFrame(
        {
            "patient": ["A", "A", "B", "B"],
            "age": ["85", "", "85", ""],
            "visit": ["2010-01-01", "2016-01-01"] + ["2010-01-01"] * 2,
        }
    )
    out = read_back(clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY))
    assert out["age"].tolist() == ["85", "", "85", ""] and [v != "" for v in out["visit"]] == [False, False, True, True]


AGES = [
    ("age_months", None, 1500, ["93", "1000", "1085", "1200"], ["93", "1000", "1080", "1080"]),
    ("ageInDays", None, 50000, ["93", "32000", "33000"], ["93", "32000", "32872"]),
    ("agemonths", None, 1500, ["93", "1085"], ["93", "1080"]),
    ("age", "Age in months", 1500, ["93", "1085"], ["93", "1080"]),
    ("age", "Age (weeks)", 9000, ["93", "4800"], ["93", "4696"]),
    ("age", None, 120, ["93", "89"], ["90", "89"]),
    ("age_at_day_1", None, 120, ["93", "89"], ["90", "89"]),
    ("age", None, 89, ["93", "89"], ["", "89"]),
]


@pytest.mark.parametrize(("name", "title", "upper", "given", "expected"), AGES)
def test_ages_over_89_are_one_group_in_their_own_unit(name, title, upper, given, expected, tmp_path):
    recipe = declared(tmp_path, **{name: number(upper, title=title)})
    assert cleaned(recipe, visit=["2019-03-04"] * len(given), **{name: given})[name].tolist() == expected


def test_an_age_without_a_unit_is_not_guessed_at(tmp_path):
    recipe = declared(tmp_path, age=number(40000))
    assert quarantined(b"patient,visit,age\nA,2019-03-04,93\n", recipe) == "age-unit"


@pytest.mark.parametrize(
    ("levels", "value", "expected"), [(["0-89", "90+"], "90+", "90+"), (["0-89", "90-94", "95+"], "95+", "")]
)
def test_age_groups_over_89_are_one(levels, value, expected, tmp_path):
    recipe = declared(tmp_path, age_group={"type": "ordinal", "levels": levels})
    assert cleaned(recipe, visit=["2019-03-04"], age_group=[value])["age_group"].tolist() == [expected]


def test_numbers_outside_their_bounds_are_emptied_and_counted(tmp_path):
    recipe = declared(tmp_path, weight=number(300))
    values = ["70.5"] * 99 + ["837461"]
    table = pd.DataFrame({"patient": map(str, range(100)), "visit": "2019-03-04", "weight": values})
    out = clean_table(as_bytes(table, "csv"), "t.csv", recipe, KEY)
    assert read_back(out)["weight"].tolist() == ["70.5"] * 99 + [""] and out.notes["emptied"] == {"weight": 1}
    table["weight"] = "4917655512349"
    assert quarantined(as_bytes(table, "csv"), recipe) == "identifier-in-column"


def test_dates_of_several_zones_keep_the_day_that_is_written(tmp_path):
    visits = ["2019-03-04T23:30:00+01:00", "2019-03-04T01:00:00-05:00", "2019-03-04", "2019-03-04T10:00:00Z", "soon"]
    table = pd.DataFrame({"patient": ["A"] * 5, "visit": visits})
    out = clean_table(as_bytes(table, "csv"), "t.csv", declared(tmp_path), KEY)
    days = read_back(out)["visit"].tolist()
    assert len(set(days[:4])) == 1 and days[0] and days[4] == "" and out.notes["emptied"] == {"visit": 1}


def test_numbers_of_patients_are_the_same_in_every_form(recipe):
    table = frame()
    table["patient"] = [100 + i // 2 for i in range(len(table))]
    kept = {
        form: read_back(clean_table(as_bytes(table, form), "t", recipe, KEY))["patient"].tolist()
        for form in ("csv", "parquet", "xlsx")
    }
    table["patient"] = table["patient"].astype(float)
    kept["float"] = read_back(clean_table(as_bytes(table, "parquet"), "t", recipe, KEY))["patient"].tolist()
    assert len({tuple(v) for v in kept.values()}) == 1
