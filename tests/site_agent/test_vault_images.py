"""Images of the vault: read under a valid report only, by pseudonym and label, each by itself, and a bad file is one file less."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from site_agent.audit import Audit
from site_agent.cli import app
from site_agent.datasets import load_dataset
from site_agent.deid.engine import run
from site_agent.deid.keys import SiteKey
from site_agent.deid.recipe import Recipe, TableRules
from site_agent.image_files import Source, prepare_files
from site_agent.policy import Dataset, Labels, Limits, SiteFolder, SitePolicy
from site_agent.vault import Vault
from tests.conftest import RAW_IMAGE_STUDY
from tests.site_agent.deid.helpers import image, read_test_file, smooth, to_bytes

CLASSES = ("flat", "upright")
DICTIONARY = {
    "manifest": 1,
    "name": "findings",
    "columns": {
        "patient": {"type": "patient-id"},
        "finding": {"type": "categorical", "levels": [*CLASSES, "tilted"]},
    },
    "family": {"name": "marginals"},
    "privacy": {"epsilon": 1.0, "delta": 1e-5},
}


def study_of(image=None, **privacy):
    raw = {**RAW_IMAGE_STUDY, "image": {**RAW_IMAGE_STUDY["image"], **(image or {})}}
    return parse_study({**raw, "privacy": {**RAW_IMAGE_STUDY["privacy"], **privacy}})


SEVERAL = study_of(max_records_per_patient=3, records="averaged")


def soft(seed, size=24):
    return smooth(size, size, seed=seed).astype(np.uint8)


def scan(folder, name, patient, number, samples=None, **extra):
    """A DICOM file of this patient."""
    samples = soft(number) if samples is None else samples
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    ds = image(samples, patient=patient, SOPInstanceUID=f"1.2.{number}", **extra)
    (folder / name).write_bytes(to_bytes(ds))


class Site:
    """A site with a vault and a source folder, both below ``tmp_path``."""

    def __init__(self, tmp_path):
        self.path, self.src, self.dictionary = tmp_path / "site", tmp_path / "src", tmp_path / "dictionary.json"
        if not self.path.exists():
            self.src.mkdir()
            SiteFolder.create(self.path, SitePolicy(site="north", datasets={"chest": Dataset(vault="chest")}))
            self.dictionary.write_text(json.dumps(DICTIONARY))
        self.key = SiteKey(SiteFolder(self.path).key())
        self.vault = Vault(self.path)

    def ingest(self, name="chest", **recipe):
        rules = Recipe(
            clean_pixel_data=False,
            clean_recognizable_visual_features=False,
            table=TableRules(study=self.dictionary),
            **recipe,
        )
        tally = run([self.src], self.vault, name, self.key, rules)
        self.vault.sign(name, self.key)
        return tally

    def register(self, **datasets):
        policy = SiteFolder(self.path).policy().model_copy(update={"datasets": datasets})
        (self.path / "site.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True)))

    def load(self, study=None, strict=False):
        return load_dataset(SiteFolder(self.path), "chest", study or study_of(), strict=strict)

    def refusal(self, code, **kwargs):
        with pytest.raises(MedsynxError) as caught:
            self.load(**kwargs)
        assert caught.value.code == code, caught.value
        return caught.value


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Ten patients of two images, in folders that are their class."""
    folder = tmp_path_factory.mktemp("original")
    site = Site(folder)
    for n in range(20):
        scan(site.src, f"{CLASSES[n // 2 % 2]}/patient{n // 2}/{n}.dcm", f"A{n // 2}", n)
    site.ingest(labels=CLASSES)
    site.vault.catalogue.close()
    return folder


@pytest.fixture
def filled(original, tmp_path):
    """A copy of it to change."""
    shutil.copytree(original, tmp_path / "copy")
    return Site(tmp_path / "copy")


def test_patients_and_labels_from_folders(filled):
    once = filled.load().parts["all"]
    assert once.count == len(once.images) == 10 and once.images.shape[1:] == (1, 12, 12)
    assert np.bincount(once.codes[:, 0]).tolist() == [5, 5]
    table = filled.load(SEVERAL)
    several = table.parts["all"]
    assert several.count == 10 and len(several.images) == 20 and table.capped == 0
    for patient in range(10):
        assert len(set(several.codes[several.patient == patient, 0])) == 1
    assert filled.load().capped == 10
    assert "patient0" not in (filled.path / "vault" / "catalogue.sqlite").read_bytes().decode("latin-1")


def test_site_check_tells_this_sites_officer_and_sends_nothing(filled, tmp_path):
    policy = SiteFolder(filled.path).policy()
    limits = Limits(
        epsilon_per_study=4, epsilon_lifetime=4, minimum_patients=10, families=("moments",), trust=("secure-sum",)
    )
    policy = policy.model_copy(update={"limits": limits})
    (filled.path / "site.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True)))
    study = tmp_path / "study.yaml"
    asked = study_of({"classes": [*CLASSES, "steep"]}, max_records_per_patient=3, records="averaged")
    study.write_text(yaml.safe_dump(asked.model_dump(mode="json")))
    command = ["check", "--dir", str(filled.path), str(study), "--dataset", "chest"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "20 images of 10 patients; 0 above" in shown.output and "flat: 10, upright: 10, steep: 0" in shown.output
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (told["images"], told["patients"]) == (20, 10) and told["classes"] == {"flat": 10, "upright": 10, "steep": 0}
    assert told["left_out"] == {} and not Audit(filled.path / "audit.sqlite").chain.entries()


def by_patient(table):
    """Images of each patient in `all`, as a set that names nobody."""
    one = table.parts["all"]
    return sorted(sorted(i.tobytes() for i in one.images[one.patient == p]) for p in range(one.count))


def test_training_reads_images_only_under_a_valid_report(filled):
    target = next((filled.path / "vault" / "objects").rglob("*.dcm"))
    whole = target.read_bytes()
    target.write_bytes(whole[:-1] + b"x")
    filled.refusal("report-invalid")
    target.write_bytes(whole)
    assert filled.load().parts["all"].count == 10
    (filled.path / "vault" / "reports" / "chest.json").unlink()
    filled.refusal("report-invalid")


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE file SET patient = 'P-00000000000000000000' WHERE id = 3""",
        """UPDATE file SET notes = '{"label": "flat"}' WHERE notes LIKE '%upright%'""",
    ],
)
def test_whose_an_image_is_and_what_it_shows_are_signed_too(filled, change):
    with sqlite3.connect(filled.path / "vault" / "catalogue.sqlite") as db:
        db.execute(change)
    filled.refusal("report-invalid")


def test_a_patient_counts_as_one_and_leaves_without_a_trace_in_the_others(filled):
    """The images of the nine others are the same to the bit, however many and however extreme those of the tenth were."""
    for number in range(30, 36):
        scan(filled.src, f"flat/x/{number}.dcm", "A0", number, np.full((60, 24), 255, np.uint8))
    filled.ingest(labels=CLASSES)
    whole = filled.load(SEVERAL)
    filled.vault.forget_patient(filled.key.pseudonym("", "A0"), filled.key)
    less = filled.load(SEVERAL)
    assert whole.parts["all"].count == 10 and whole.capped == 5 and less.parts["all"].count == 9
    assert [p for p in by_patient(whole) if p in by_patient(less)] == by_patient(less)
    weights = whole.parts["all"].weights(900, SEVERAL.privacy)
    assert np.bincount(whole.parts["all"].patient, weights).max() == 900
    again = filled.load(SEVERAL).parts["train"]
    assert np.array_equal(again.images, less.parts["train"].images), "the same patients and images every time"


def test_which_image_of_a_patient_counts_is_drawn_with_the_sites_key(tmp_path):
    for number in range(20):
        scan(tmp_path, f"{number}.dcm", "A", number, np.full((16, 16), number * 10, np.uint8))
    sources = [Source(tmp_path / f"{number}.dcm", "dicom", f"{number}", "A", 0) for number in range(20)]
    keys = [bytes([k]) * 32 for k in range(12)]
    chosen = {prepare_files(sources, study_of(), key, Counter()).parts["all"].images.max() for key in keys}
    assert len(chosen) > 3


def test_a_bad_file_is_one_file_less(filled):
    """Undecodable, without pixels, of another modality, too small, or not a number: counted by reason, and nothing else changes."""
    before = by_patient(filled.load())
    ds = read_test_file("rtplan.dcm")
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = "B0", "Nobody", ""
    (filled.src / "flat" / "plan.dcm").write_bytes(to_bytes(ds))
    scan(filled.src, "flat/colour.dcm", "B1", 89, np.zeros((16, 16, 3), np.uint8), photometric="HSV")
    scan(filled.src, "flat/mask.dcm", "B2", 90, modality="SEG")
    scan(filled.src, "flat/small.dcm", "B3", 91, soft(1, 6))
    voxels = np.ones((20, 20, 20), np.float32)
    voxels[5:8] = np.nan
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), filled.src / "flat" / "sub-07_T1w.nii.gz")
    scan(filled.src, "other/1.dcm", "B4", 92)
    tally = filled.ingest(labels=CLASSES)
    assert tally.verdicts["clean"] == 26, tally.refused
    table = filled.load()
    assert by_patient(table) == before
    assert table.report.left_out == {
        "cannot be decoded": 1,
        "no pixels": 1,
        "another modality": 1,
        "smaller than 8 x 8 pixels": 1,
        "pixels that are not finite numbers": 1,
        "no label": 1,
    }
    filled.refusal("level-unknown", strict=True)


def test_modalities_sizes_and_shapes_of_a_study(site):
    """Mixed sizes are resampled one by one, other aspect ratios padded; only the study's modalities are read."""
    for number, (modality, shape) in enumerate([("DX", (50, 30)), ("CR", (24, 24)), ("CT", (24, 24)), ("US", (9, 90))]):
        scan(site.src, f"flat/{number}.dcm", f"A{number}", number, np.full(shape, 255, np.uint8), modality=modality)
    site.ingest(labels=CLASSES)
    table = site.load(study_of({"modalities": ["DX", "CR"]}))
    sums = sorted(int((i > 0.5).sum()) for i in table.parts["all"].images)
    assert table.report.left_out == {"another modality": 2} and sums == [12 * 7, 12 * 12]
    everything = site.load()
    assert everything.parts["all"].count == 4, "one image a class, or none of one: no error"
    assert everything.parts["all"].codes.ravel().tolist() == [0] * 4


def test_the_same_file_twice_is_one_image(filled):
    copy = filled.src / "flat" / "again"
    copy.mkdir()
    for file in (filled.src / "flat").rglob("[0-9].dcm"):
        (copy / file.name).write_bytes(file.read_bytes())
    before = by_patient(filled.load(SEVERAL))
    filled.ingest(labels=CLASSES)
    assert by_patient(filled.load(SEVERAL)) == before


def test_only_listed_folders_are_labels(site):
    paths = [
        "flat/1.dcm",
        "flat/upright/2.dcm",
        "Flat/3.dcm",
        "upright.dcm",
        "deep/upright/Miller_Anna/5.dcm",
        "upright/upright/6.dcm",
    ]
    for number, path in enumerate(paths):
        scan(site.src, path, f"A{number}", number)
    site.ingest(labels=CLASSES)
    rows = list(site.vault.catalogue.files("chest"))
    found = {r["patient"]: json.loads(r["notes"]).get("label") for r in rows}
    wanted = ["flat", None, None, None, "upright", "upright"]
    assert found == {site.key.pseudonym("", f"A{n}"): w for n, w in enumerate(wanted)}
    assert site.vault.verified("chest", site.key)["labels"] == {"upright": 2, "flat": 1}
    catalogue = (site.path / "vault" / "catalogue.sqlite").read_bytes()
    assert b"Miller" not in catalogue and b"Miller" not in (site.path / "vault" / "reports" / "chest.html").read_bytes()


def test_labels_are_part_of_the_recipe():
    assert Recipe().digest == Recipe(labels=()).digest != Recipe(labels=("flat",)).digest


# -- labels from a table


def findings(site, rows):
    pd.DataFrame(rows, columns=["patient", "finding"]).to_csv(site.src / "findings.csv", index=False)


def test_labels_from_a_table_keyed_by_pseudonym(site):
    """In another data set of the vault, whose report must be valid as well."""
    for number in range(6):
        scan(site.src, f"{number}.dcm", f"A{number}", number)
    site.ingest()
    for file in site.src.glob("*.dcm"):
        file.unlink()
    rows = [
        ("A0", "flat"),
        ("A1", "upright"),
        ("A1", ""),
        ("A2", "flat"),
        ("A2", "upright"),
        ("A3", ""),
        ("A4", "tilted"),
    ]
    findings(site, [*rows, ("Z9", "flat")])
    site.ingest("lists")
    site.register(chest=Dataset(vault="chest", labels=Labels(column="finding", vault="lists")))
    table = site.load()
    assert table.parts["all"].count == 2 and sorted(table.parts["all"].codes.ravel()) == [0, 1]
    assert table.report.left_out == {"patient with several labels": 1, "label outside the study": 1, "no label": 2}
    (row,) = site.vault.catalogue.files("lists")
    path = site.vault.root / row["output"]
    path.write_bytes(path.read_bytes().replace(b"upright", b"flat", 1))
    site.refusal("report-invalid")


def test_images_without_labels_are_refused(site):
    scan(site.src, "flat/1.dcm", "A1", 1)
    site.ingest()
    refused = site.refusal("column-missing")
    assert "no image of data set chest has a label" in refused.message and "labels" in refused.hint
    site.register(chest=Dataset(vault="chest", labels=Labels(column="finding")))
    assert "no table of data set chest" in site.refusal("column-missing").message
    findings(site, [("A1", "upright"), ("A2", "flat")])
    site.ingest()
    assert site.load().parts["all"].codes.tolist() == [[1]]
    assert "1 files: label outside the study" in site.refusal("table-empty", study=study_of({"classes": ["a"]})).message
    site.register(chest=Dataset(vault="chest", labels=Labels(column="stage")))
    assert "column stage" in site.refusal("column-missing").message
    site.register(chest=Dataset(vault="nothing"))
    site.refusal("dataset-unknown")


# -- pictures and volumes


def test_pictures_and_volumes_are_of_the_subject_in_their_path(site):
    """Sections of one volume are images of one patient; a file that does not say whose it is stays out where patients have several images."""
    for subject in ("01", "02", "03"):
        for visit in ("a", "b"):
            voxels = np.random.default_rng([int(subject), ord(visit)]).integers(0, 200, (20, 20, 20)).astype(np.int16)
            folder = site.src / "flat" / f"sub-{subject}"
            folder.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"sub-{subject}_ses-{visit}_T1w.nii.gz")
    Image.fromarray(soft(1)).save(site.src / "flat" / "loose.png")
    Image.fromarray(soft(2)).save(site.src / "flat" / "sub-04_photo.png")
    site.ingest(labels=CLASSES)
    assert site.load().report.left_out == {"does not say whose it is": 1}, "unless the officer knows it"
    site.register(chest=Dataset(vault="chest", one_file_a_patient=True))
    one = site.load()
    assert one.parts["all"].count == 5 and one.capped == 3 and not one.report.left_out
    table = site.load(study_of({"slices": 3}, max_records_per_patient=5, records="averaged"))
    assert table.report.left_out == {"does not say whose it is": 1} and table.capped == 3
    assert sorted(np.bincount(table.parts["all"].patient).tolist()) == [1, 5, 5, 5]


def test_a_file_without_a_name_stays_in_its_part_wherever_it_lies(site):
    site.register(chest=Dataset(vault="chest", one_file_a_patient=True))
    held = []
    for place in ("flat/first", "flat/moved"):
        (site.src / place).mkdir(parents=True)
        for number in range(90):  # as many that some are held out whatever the site's key
            Image.fromarray(soft(number)).save(site.src / place / f"{place[5]}{number}.png")
        site.ingest(labels=CLASSES)
        table = site.load()
        assert table.parts["all"].count == 90
        held.append(({i.tobytes() for i in table.parts["holdout"].images}, table.marks))
        site.vault.forget_dataset("chest")
        shutil.rmtree(site.src / place)
    assert held[0] == held[1] and 0 < len(held[0][0]) < 60


def test_a_data_set_has_one_name_and_a_file_has_its_own_labels():
    wrong = [
        {"datasets": {"a": {"vault": "chest"}, "b": {"vault": "chest", "labels": {"column": "x"}}}},
        {"datasets": {"a": {"path": "t.csv"}, "b": {"path": "t.csv"}}},
        {"datasets": {"a": {"path": "t.npz", "labels": {"column": "x"}}}},
    ]
    for policy in wrong:
        with pytest.raises(ValidationError):
            SitePolicy.model_validate({"site": "north", **policy})
    SitePolicy.model_validate({"site": "north", "datasets": {"a": {"path": "chest.csv"}, "b": {"vault": "chest"}}})
