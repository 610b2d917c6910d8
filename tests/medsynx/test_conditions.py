"""Conditions on the command line and in draws from a bundle."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from medsynx.cli import app
from medsynx.conditions import classes_of, parse_conditions
from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from onehost.simulate import simulate
from tests.helpers import make_tables


def test_texts_become_what_a_draw_takes(study):
    found = parse_conditions(["sex=F", "grade=1", "grade=3", "age=30..", "marker=1..5", "ill="], study)
    assert found == {
        "sex": ["F"],
        "grade": ["1", "3"],
        "age": {"min": "30"},
        "marker": {"min": "1", "max": "5"},
        "ill": [None],
    }


@pytest.mark.parametrize("texts", [["sex"], ["height=3"], ["age=1..2", "age=50"], ["age=50", "age=1..2"]])
def test_other_texts_are_refused(study, texts):
    with pytest.raises(MedsynxError) as caught:
        parse_conditions(texts, study)
    assert caught.value.code == "condition-invalid"


def test_classes_of_images(image_study):
    asked = parse_conditions(["class=upright", "class=flat", "class=flat"], image_study)
    assert classes_of(asked, image_study) == ("flat", "upright"), "the order of asking changes nothing"
    assert classes_of({"class": "upright"}, image_study) == ("upright",) and classes_of({}, image_study) == ()
    for wrong in ({"class": "up..right"}, {"class": ["flat", "x"]}, {"class": []}, {"class": None}, {"age": 3}):
        with pytest.raises(MedsynxError) as caught:
            classes_of(wrong, image_study)
        assert caught.value.code == "condition-invalid" and "flat, upright" in caught.value.hint
    with pytest.raises(MedsynxError) as caught:
        parse_conditions(["sex=F"], image_study)
    assert caught.value.code == "condition-invalid" and "flat, upright" in caught.value.hint


def test_generate_where(tmp_path, raw_study):
    study = parse_study(raw_study)
    found = simulate(study, make_tables(tmp_path / "in"), tmp_path / "out")
    out = tmp_path / "rows.csv"
    asked = ["--where", "sex=F", "--where", "marker=2.5..10", "--where", "grade=2", "--where", "grade=3"]
    done = CliRunner().invoke(
        app, ["generate", found["bundle"], "--rows", "500", "--out", str(out), "--seed", "1", *asked]
    )
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(out, dtype={"grade": str})
    assert len(rows) == 500 and set(rows["sex"]) == {"F"} and set(rows["grade"]) == {"2", "3"}
    assert rows["marker"].between(2.5, 10).all()
    whole = CliRunner().invoke(app, ["generate", found["bundle"], "--rows", "500", "--out", str(out), "--seed", "1"])
    assert whole.exit_code == 0 and set(pd.read_csv(out)["sex"].dropna()) > {"F"}
