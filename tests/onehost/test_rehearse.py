"""`medsynx site rehearse`: the study as it will run, on nobody's data; and what stands in its way here."""

import inspect
import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from evaluation.programme import full_plan, priced_plan
from medsynx.cli import main
from medsynx.study import parse_study
from onehost.rehearse import fake, rehearse
from site_agent.door import Door
from tests.conftest import RAW_IMAGE_STUDY, RAW_STUDY, small_table
from tests.helpers import make_site

TINY = {"rounds": 1, "critic_steps": 3, "hidden": 16, "critic_hidden": 8, "latent": 8, "batch": 16}
UNJUDGED = {**RAW_STUDY, "evaluation": {"federated": False}}
KINDS = {
    "marginals": RAW_STUDY,
    "masked": {**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"}},
    "dp-gan": {**UNJUDGED, "family": {"name": "dp-gan", "parameters": TINY}},
    "dp-gan-sum": {**UNJUDGED, "family": {"name": "dp-gan", "parameters": {**TINY, "gradients": "summed"}}},
    "moments": RAW_IMAGE_STUDY,
    "mean-embedding": {
        **RAW_IMAGE_STUDY,
        "family": {"name": "mean-embedding", "parameters": {"features": 32, "steps": 2}},
        "privacy": {**RAW_IMAGE_STUDY["privacy"], "max_records_per_patient": 2, "records": "averaged"},
    },
    "visits": {
        **RAW_STUDY,
        "columns": {"who": {"type": "patient-id"}, **RAW_STUDY["columns"]},
        "privacy": {**RAW_STUDY["privacy"], "max_records_per_patient": 3},
    },
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "dp-gan" else k for k in KINDS])
def test_every_family_is_played_to_its_end(kind):
    study = parse_study(KINDS[kind])
    found = rehearse(study, None, patients=60)
    assert found["problems"] == [] and found["exit_status"] == 0
    planned = {s.name: s.bytes for s in full_plan(study)}
    assert all(s["bytes"] == planned[s["step"]] for s in found["steps"]), "sizes are those of the plan"
    assert (
        0 < found["bytes_out"] <= found["planned_bytes"] - found["message_bytes"] == priced_plan(study).bytes_per_site
    )
    assert bool(found["message_bytes"]) == (study.privacy.trust == "secure-sum")
    assert 0 < found["epsilon_of_run"] <= study.privacy.epsilon * (1 + 1e-6)
    assert found["digest"] == study.digest and found["peak_mib"] > 50


@pytest.mark.slow
def test_a_student_is_played_too():
    family = {"name": "synthcity", "parameters": {"plugin": "arf", "mode": "student"}}
    assert rehearse(parse_study({**RAW_STUDY, "family": family}), None, patients=60)["problems"] == []


def test_fake_data_knows_the_dictionary_and_nothing_else(tmp_path):
    study = parse_study(KINDS["visits"])
    assert list(inspect.signature(fake).parameters) == ["study", "patients", "folder"]
    table = pd.read_csv(fake(study, 50, tmp_path), dtype=str)
    assert table["who"].nunique() == 50 and len(table) == 150 and list(table.columns)[-1] == "who"
    assert set(table["sex"]) <= {"F", "M"} and table["age"].astype(float).between(18, 90).all()
    with np.load(fake(parse_study(RAW_IMAGE_STUDY), 50, tmp_path)) as images:
        assert images["images"].shape == (50, 12, 12) and set(images["labels"]) <= {"flat", "upright"}


def run(capsys, *words) -> tuple[int, str]:
    before, sys.argv = sys.argv, ["medsynx", "site", "rehearse", *map(str, words)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, capsys.readouterr().out


@pytest.fixture
def desk(tmp_path, study):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(RAW_STUDY, sort_keys=False))
    return tmp_path


def test_one_screen_and_nothing_sent_or_charged(desk, study, capsys):
    table = small_table(300, 1)
    table.loc[:4, "sex"] = "X"
    site = make_site(desk / "site", study, pd.concat([table, table[:3]]))
    before = {f: f.read_bytes() for f in sorted(site.path.rglob("*")) if f.is_file()}
    code, screen = run(capsys, desk / "study.yaml", "--dir", site.path)
    assert code == 0, screen
    for said in ("303", "0 -> 2 of 2", "sex: 8 no level", "3 rows are equal", "yes", "nothing stands in the way"):
        assert said in screen, said
    after = {f: f.read_bytes() for f in sorted(site.path.rglob("*")) if f.is_file()}
    assert before == {f: after[f] for f in before}
    assert Door(site).ledger.chain.entries() == []


@pytest.mark.parametrize(
    ("limits", "rows", "codes"),
    [
        ({"epsilon_lifetime": 1.0}, 300, ["budget-exceeded"]),
        ({"minimum_patients": 400}, 300, ["patients-too-few"]),
        ({"families": ("dp-gan",)}, 300, ["policy-refused"]),
        ({"families": ("dp-gan",), "minimum_patients": 400}, 300, ["policy-refused", "patients-too-few"]),
    ],
)
def test_what_stands_in_the_way_is_listed_and_the_first_is_the_exit_status(desk, study, capsys, limits, rows, codes):
    site = make_site(desk / "site", study, small_table(rows, 1), approve=False, **limits)
    code, out = run(capsys, desk / "study.yaml", "--dir", site.path, "--patients", "60", "--json")
    found = json.loads(out)
    assert [p["code"] for p in found["problems"]] == codes and code == found["exit_status"] != 0
    assert found["steps"], "it is played all the same"


def test_a_table_that_cannot_be_read_is_a_problem_too(desk, study, capsys):
    site = make_site(desk / "site", study, small_table(300, 1).drop(columns="age"))
    code, out = run(capsys, desk / "study.yaml", "--dir", site.path, "--patients", "60")
    assert code == 22 and "the table lacks age" in out
