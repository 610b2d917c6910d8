"""Pictures and tables."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from site_agent.deid.pictures import clean_picture
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe, TableRules
from site_agent.deid.tabular import clean_table
from tests.site_agent.deid.helpers import FAMILY, KEY, MRN, OTHER, clean, image, smooth, write_text
from tests.site_agent.deid.test_deid_pixels import CORNER, TEXT, legible


def encoded(samples, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, form, **options)
    return buffer.getvalue()


def with_metadata(samples, form):
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{FAMILY} left knee", OTHER
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", f"{FAMILY} was here")
        info.add_itxt("XML:com.adobe.xmp", f"<x>{OTHER}</x>")
        return encoded(samples, "PNG", pnginfo=info, exif=exif)
    if form == "JPEG":
        return encoded(samples, "JPEG", exif=exif, comment=f"{FAMILY} {OTHER}".encode(), quality=90)
    return encoded(samples, "TIFF", tiffinfo={270: f"{FAMILY} knee", 315: OTHER})


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("colour", [False, True])
def test_metadata_goes_and_samples_stay(form, colour):
    samples = smooth(120, 160).astype(np.uint8)
    samples = np.stack([samples, samples // 2, 255 - samples], -1) if colour else samples
    data = with_metadata(samples, form) + (f"trailing {OTHER}".encode() if form != "TIFF" else b"")
    assert FAMILY.encode() in data
    out = clean_picture(data, f"{FAMILY}.x", Recipe(), KEY)
    assert FAMILY.encode() not in out.data and OTHER.encode() not in out.data and FAMILY not in out.name
    assert np.array_equal(np.array(Image.open(io.BytesIO(out.data))), np.array(Image.open(io.BytesIO(data))))
    assert not Image.open(io.BytesIO(out.data)).getexif().get(0x010E)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_burned_in_text_goes(form):
    samples = smooth(300, 400).astype(np.uint8)
    mask = write_text(samples, TEXT, CORNER, 255)
    out = clean_picture(encoded(samples, form), "a.x", Recipe(), KEY)
    assert out.changed_pixels and not legible(np.array(Image.open(io.BytesIO(out.data))), mask)


def test_text_hidden_in_opacity_goes():
    samples = np.zeros((300, 400, 4), np.uint8)
    samples[..., :3], samples[..., 3] = smooth(300, 400)[..., None].astype(np.uint8), 255
    mask = write_text(samples[..., 3], TEXT, CORNER, 0)
    out = np.array(Image.open(io.BytesIO(clean_picture(encoded(samples, "PNG"), "a.png", Recipe(), KEY).data)))
    assert not legible(out[..., 3], mask)


def test_pages_and_damage_are_quarantined():
    pages = io.BytesIO()
    one = Image.fromarray(smooth(60, 60).astype(np.uint8))
    one.save(pages, "TIFF", save_all=True, append_images=[one])
    for data, reason in (
        (pages.getvalue(), "picture-unusual"),
        (encoded(smooth(60, 60).astype(np.uint8), "PNG")[:80], "damaged"),
    ):
        with pytest.raises(Quarantine) as refused:
            clean_picture(data, "a", Recipe(), KEY)
        assert refused.value.reason == reason


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
            "age": [str(93 if i == 0 else 40 + i % 50) for i in range(rows)],
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
    assert table["age"][0] == "90" and table["age"][1] == "41"
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
