"""The vault and the report: what is in it, whether it is still what was signed, and how a patient leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError

from medsynx.errors import MedsynxError
from site_agent.datasets import read_dataset
from site_agent.deid.engine import Folder, run
from site_agent.deid.keys import SiteKey
from site_agent.deid.recipe import Recipe, TableRules
from site_agent.deid.report import verify, write
from site_agent.policy import Dataset, SiteFolder, SitePolicy
from site_agent.vault import Vault
from tests.site_agent.deid.helpers import FAMILY, KEY, image, medsynx, smooth, to_bytes, write_text
from tests.site_agent.deid.test_deid_tables import STUDY, frame


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    SiteFolder.create(folder, SitePolicy(site="north", datasets={}))
    return folder


@pytest.fixture
def src(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    for i, patient in enumerate(("A1", "A1", "B2")):
        samples = smooth(200, 260, seed=i).astype(np.uint8)
        if i == 0:
            write_text(samples, "QOZIVARUK 1950", (10, 10), 255, 20)
        ds = image(samples, patient=patient, SOPInstanceUID=f"1.2.{i}")
        (folder / f"{i}.dcm").write_bytes(to_bytes(ds))
    (folder / "table.csv").write_text(frame().to_csv(index=False))
    (folder / "letter.doc").write_bytes(b"\0\1 a letter")
    return folder


@pytest.fixture
def filled(site, src, tmp_path):
    """A vault with one data set, and the site's key."""
    study = tmp_path / "study.json"
    study.write_text(json.dumps(STUDY))
    key = SiteKey(SiteFolder(site).key())
    vault = Vault(site)
    run([src], vault, "first", key, Recipe(table=TableRules(study=study)), jobs=1)
    vault.sign("first", key)
    return vault, key


def test_the_commands(site, src):
    done = medsynx("site", "ingest", src, "--dataset", "scans", "--dir", site, "--json")
    assert done.returncode == 80, done.stderr
    said = json.loads(done.stdout)
    assert said["clean"] == 3 and said["reasons"] == {"table-undeclared": 1, "not-recognised": 1}
    listed = json.loads(medsynx("site", "datasets", "--dir", site, "--json").stdout)
    assert [(d["name"], d["clean"], d["patients"]) for d in listed] == [("scans", 3, 2)]
    shown = medsynx("site", "datasets", "show", "scans", "--dir", site)
    assert shown.returncode == 0 and "report valid" in shown.stdout and "2 patients" in shown.stdout
    again = medsynx("site", "ingest", src, "--dataset", "scans", "--dir", site, "--json")
    assert json.loads(again.stdout)["from_an_earlier_run"] == 5
    gone = medsynx("site", "forget", "A1", "--dir", site, "--yes")
    assert gone.returncode == 0 and "scans: 2 files" in gone.stdout
    assert json.loads(medsynx("site", "datasets", "--dir", site, "--json").stdout)[0]["patients"] == 1
    unknown = medsynx("site", "datasets", "show", "nothing", "--dir", site)
    assert unknown.returncode == 89 and "Traceback" not in unknown.stderr
    assert medsynx("site", "ingest", src, "--dataset", "No Name", "--dir", site).returncode == 87


def test_files_lie_by_content_and_nobody_else_reads_them(filled):
    import hashlib

    vault, _ = filled
    objects = [p for p in (vault.root / "objects").rglob("*") if p.is_file()]
    assert len(objects) == 4
    for p in objects:
        assert hashlib.sha256(p.read_bytes()).hexdigest() == p.name.split(".")[0] and p.stat().st_mode & 0o777 == 0o600
    for p in vault.root.rglob("*"):
        assert p.stat().st_mode & 0o077 == 0, p


def test_the_catalogue_says_what_it_should_and_no_name(filled):
    vault, _ = filled
    rows = list(vault.catalogue.files("first", verdict="clean"))
    assert {r["kind"] for r in rows} == {"dicom", "table"} and all(r["sha256"] and r["at"] for r in rows)
    assert {json.loads(r["shape"])[0] for r in rows if r["kind"] == "dicom"} == {200}
    assert FAMILY.encode() not in (vault.root / "catalogue.sqlite").read_bytes()


def test_the_report_counts_and_is_signed(filled):
    vault, key = filled
    body = vault.verified("first", key)
    assert body["files"] == {"in": 5, "clean": 4, "quarantined": 1, "failed": 0, "patients": 22, "changed_pixels": 1}
    assert body["reasons"] == {"not-recognised": 1} and body["kept"]["Modality"] == 3 and body["recipe"]["digest"]
    page = (vault.root / "reports" / "first.html").read_text()
    assert page.count("data:image/png") == 2 and FAMILY not in page and "letter.doc" not in page
    with pytest.raises(MedsynxError) as refused:
        vault.verified("first", SiteKey(b"q" * 32))
    assert refused.value.code == "report-invalid"


@pytest.mark.parametrize("harm", ["count", "file", "missing", "added", "unsigned"])
def test_a_changed_data_set_has_no_valid_report(harm, filled, src):
    vault, key = filled
    report = vault.root / "reports" / "first.json"
    objects = [p for p in (vault.root / "objects").rglob("*.dcm") if p.is_file()]
    if harm == "count":
        report.write_text(report.read_text().replace('"quarantined": 1', '"quarantined": 0'))
    elif harm == "file":
        objects[0].write_bytes(objects[0].read_bytes()[:-1] + b"x")
    elif harm == "missing":
        objects[0].unlink()
    elif harm == "added":
        ds = image(smooth(64, 64, seed=7).astype(np.uint8), patient="C3", SOPInstanceUID="1.2.7")
        (src / "new.dcm").write_bytes(to_bytes(ds))
        row = vault.catalogue.dataset("first")
        assert row is not None
        recipe = Recipe.model_validate_json(row["recipe"])
        run([src], vault, "first", key, recipe)
    else:
        report.unlink()
    with pytest.raises(MedsynxError) as refused:
        vault.verified("first", key)
    assert refused.value.code == "report-invalid"


def test_a_withdrawn_patient_leaves_and_stays_out(filled, src, tmp_path):
    vault, key = filled
    patient = key.pseudonym("", "M83746152")  # rows of the table only
    rows_before = 40
    assert vault.forget_patient(patient, key) == {"first": 1}
    table = next(r for r in vault.catalogue.files("first") if r["kind"] == "table")
    rest = pd.read_csv(vault.root / table["output"], dtype=str)
    assert len(rest) == rows_before - 2 and patient not in set(rest["patient"])
    vault.verified("first", key)
    images = key.pseudonym("", "A1")
    assert vault.forget_patient(images, key) == {"first": 2}
    assert (
        not list(vault.catalogue.files("first", patient=images)) and vault.verified("first", key)["files"]["clean"] == 2
    )
    everything = b"".join(p.read_bytes() for p in vault.root.rglob("*") if p.is_file() and "sqlite" not in p.name)
    assert images.encode() not in everything
    recipe = Recipe.model_validate_json((vault.catalogue.dataset("first") or {})["recipe"])
    tally = run([src], vault, "second", key, recipe)
    assert tally.reasons["withdrawn"] == 2
    again = next(r for r in vault.catalogue.files("second") if r["kind"] == "table")
    assert patient not in (vault.root / again["output"]).read_text()


def test_forgetting_a_data_set_keeps_what_another_holds(filled, src):
    vault, key = filled
    recipe = Recipe.model_validate_json((vault.catalogue.dataset("first") or {})["recipe"])
    (src / "table.csv").unlink()
    run([src], vault, "second", key, recipe)
    vault.sign("second", key)
    assert vault.forget_dataset("first") == 1  # the table; the three images are also in `second`
    vault.verified("second", key)
    with pytest.raises(MedsynxError):
        vault.verified("first", key)
    assert vault.forget_dataset("second") == 3
    assert not [p for p in (vault.root / "objects").rglob("*") if p.is_file()]


def test_a_folder_has_a_report_too(src, tmp_path):
    place = Folder(tmp_path / "dst")
    run([src], place, "files", KEY, Recipe())
    page = write(place.catalogue, place.root, "files", KEY)
    assert verify(place.catalogue, place.root, "files", KEY)["files"]["clean"] == 3
    assert Path(page).stat().st_mode & 0o777 == 0o600


def test_the_report_can_be_read_in_a_browser(filled, tmp_path):
    """Real chromium: the page renders its tiles and pictures."""
    import shutil
    import subprocess

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser on this machine")
    vault, _ = filled
    shot = tmp_path / "shot.png"
    page = (vault.root / "reports" / "first.html").resolve()
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}", "--window-size=1100,1600", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    picture = np.asarray(Image.open(shot).convert("RGB"))
    red = (np.abs(picture.astype(int) - (190, 40, 40)).max(axis=-1) < 12).sum()
    assert picture.shape[1] == 1100 and red > 100 and len(np.unique(picture)) > 50


def test_training_reads_a_data_set_only_under_a_valid_report(site, filled):
    vault, _ = filled
    policy = SiteFolder(site).policy()
    registered = policy.model_copy(update={"datasets": {"cohort": Dataset(vault="first")}})
    (site / "site.yaml").write_text(yaml.safe_dump(registered.model_dump(mode="json", exclude_none=True)))
    table = read_dataset(SiteFolder(site), "cohort")
    assert len(table) == len(frame()) and table["patient"].str.startswith("P-").all()
    (row,) = (r for r in vault.catalogue.files("first", verdict="clean") if r["kind"] == "table")
    path = vault.root / row["output"]
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(MedsynxError) as refused:
        read_dataset(SiteFolder(site), "cohort")
    assert refused.value.code == "report-invalid"


def test_a_data_set_is_a_path_or_of_the_vault():
    for wrong in ({}, {"path": "a.csv", "vault": "first"}):
        with pytest.raises(ValidationError):
            Dataset.model_validate(wrong)


def test_a_withdrawal_knows_the_issuers_of_the_recipes(site, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    (tmp_path / "table.csv").write_text(frame().to_csv(index=False))
    key, vault = SiteKey(SiteFolder(site).key()), Vault(site)
    recipe = Recipe(default_issuer="NORTH", table=TableRules(study=tmp_path / "study.json"))
    run([tmp_path / "table.csv"], vault, "first", key, recipe, jobs=1)
    vault.sign("first", key)
    done = medsynx("site", "forget", "X5", "--dir", site, "--yes")
    assert done.returncode == 0 and "first: 1 files" in done.stdout, done.stderr
    assert {key.pseudonym(issuer, "X5") for issuer in ("", "NORTH")} == vault.catalogue.withdrawn()


def test_the_report_tells_kind_and_modality_apart(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    table = frame(300)
    table.loc[5, "sex"] = "other"
    (src / "t.csv").write_text(table.to_csv(index=False))
    for i, modality in enumerate(("", "US")):
        samples = smooth(64, 64, seed=i).astype(np.uint8)
        (src / f"{i}.dcm").write_bytes(to_bytes(image(samples, modality=modality, SOPInstanceUID=f"1.2.{i}")))
    place = Folder(tmp_path / "dst")
    run([src], place, "files", KEY, Recipe(clean_pixel_data=False, table=TableRules(study=tmp_path / "study.json")))
    page = write(place.catalogue, place.root, "files", KEY).read_text("utf-8")
    body = verify(place.catalogue, place.root, "files", KEY)
    assert body["kinds"] == {"dicom": {"": 1, "US": 1}, "table": {"": 1}}
    assert body["tables"][0]["emptied"] == {"sex": 1} and "emptied: sex (1)" in page and "not stated" in page
