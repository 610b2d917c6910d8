"""`medsynx simulate` as its user meets it."""

import json
import subprocess
import sys

import pytest
import yaml

from medsynx.bundle import read_bundle
from tests.conftest import RAW_STUDY, small_table
from tests.helpers import make_tables

KEYS = [
    "seconds",
    "rounds",
    "sites",
    "patients",
    "epsilon",
    "epsilon_coordinator",
    "delta",
    "tvd1",
    "tvd2",
    "tstr_auc",
    "trtr_auc",
    "bytes_per_site",
    "bundle",
    "report",
]


def run(folder, *args):
    return subprocess.run(
        [sys.executable, "-m", "medsynx", "simulate", *map(str, args)], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture
def desk(tmp_path):
    raw = {**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    tables = make_tables(tmp_path / "tables")
    small_table(500, 77).to_csv(tmp_path / "holdout.csv", index=False)
    return tmp_path, [a for t in tables for a in ("--site", t)]


@pytest.mark.parametrize("family", ["marginals", "dp-gan"])
def test_both_families_from_tables_to_bundle(desk, family):
    folder, sites = desk
    done = run(
        folder,
        "study.yaml",
        *sites,
        "--out",
        "out",
        "--holdout",
        "holdout.csv",
        "--seed",
        3,
        "--family",
        family,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(result[k] is not None for k in KEYS)
    assert result["sites"] == 3 and result["patients"] == 900 and result["figures_source"] == "direct"
    assert 1.9 < result["epsilon"] <= 2.0 and result["epsilon_coordinator"] >= result["epsilon"]
    bundle = read_bundle(folder / "out" / "small.medsynx.zip")
    assert bundle.private and "plain addition" in bundle.json("privacy.json")["aggregation"]
    page = (folder / result["report"]).read_text()
    assert "These figures are not private" in page and "through the door" in page


def refused(desk, *args):
    done = run(desk[0], *args, "--out", "out", "--json")
    assert done.returncode != 0 and done.stderr.startswith("error: ") and "try: " in done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    ("edit", "strict", "code"),
    [
        (lambda t: t.drop(columns="age"), False, "column-missing"),
        (lambda t: t.assign(extra="x"), True, "column-unknown"),
        (lambda t: t.assign(age="old"), False, "column-type"),
        (lambda t: t.assign(marker="-inf"), False, "value-not-finite"),
        (lambda t: t.assign(sex="X"), True, "level-unknown"),
        (lambda t: t.iloc[:0], False, "table-empty"),
        (lambda t: t.iloc[:5], False, "patients-too-few"),
    ],
)
def test_bad_tables_are_named_before_anything_runs(desk, edit, strict, code):
    folder, sites = desk
    edit(small_table(200, 5)).to_csv(folder / "bad.csv", index=False)
    error = refused(desk, "study.yaml", *sites, "--site", "bad.csv", *(["--strict"] if strict else []))
    assert error["code"] == code and "bad.csv" in error["message"]


def test_other_bad_input(desk):
    folder, sites = desk
    (folder / "latin.csv").write_bytes("age,sex\nJosé,F\n".encode("latin-1"))
    assert refused(desk, "study.yaml", *sites, "--site", "latin.csv")["code"] == "table-unreadable"
    assert refused(desk, "study.yaml", *sites[:2])["code"] == "quorum-lost"
    assert refused(desk, "none.yaml", *sites)["code"] == "study-unreadable"
    (folder / "wrong.yaml").write_text((folder / "study.yaml").read_text().replace("- 18", "- 95"))
    error = refused(desk, "wrong.yaml", *sites)
    assert error["details"] == ["columns.age.bounds: lower 95 > upper 90"]


def test_an_unknown_column_is_dropped_and_named(desk):
    folder, sites = desk
    small_table(200, 5).assign(shoe_size="42").to_csv(folder / "more.csv", index=False)
    done = run(folder, "study.yaml", *sites, "--site", "more.csv", "--out", "out", "--json")
    assert "site-04: not in the dictionary, left out: shoe_size" in json.loads(done.stdout)["warnings"]


def test_the_seed_never_reaches_the_noise(desk):
    folder, sites = desk
    tables = []
    for k in range(2):
        run(folder, "study.yaml", *sites, "--out", f"out{k}", "--seed", 1, "--json")
        tables.append(read_bundle(folder / f"out{k}" / "small.medsynx.zip").files["artefact/tables.npz"])
    assert tables[0] != tables[1]


@pytest.mark.parametrize("name", ["heart", "flchain", "adult", "support2", "diabetes130"])
def test_example_studies_are_valid(name):
    from pathlib import Path

    from evaluation.programme import priced_plan
    from medsynx.study import load_study

    study = load_study(Path(__file__).parents[2] / "configs" / "studies" / f"{name}.yaml")
    largest = max(s.step.bytes for s in priced_plan(study).steps)
    assert largest < (64 if len(study.data_columns) <= 14 else 128) * 1024, "bytes a site and round"
