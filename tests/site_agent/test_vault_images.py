"""Images of the vault: read under a valid report only, by pseudonym and label, each by itself, and a bad file is one file less."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from site_agent.datasets import load_dataset
from site_agent.deid.engine import run
from site_agent.deid.keys import SiteKey
from site_agent.deid.recipe import Recipe, TableRules
from site_agent.policy import Dataset, SiteFolder, SitePolicy
from site_agent.vault import Vault
from tests.conftest import RAW_IMAGE_STUDY
from tests.site_agent.deid.helpers import image, medsynx, smooth, to_bytes

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
    """A site with a vault."""

    def __init__(self, tmp_path):
        self.path, self.src = tmp_path / "site", tmp_path / "src"
        self.src.mkdir()
        SiteFolder.create(self.path, SitePolicy(site="north", datasets={"chest": Dataset(vault="chest")}))
        (tmp_path / "dictionary.json").write_text(json.dumps(DICTIONARY))
        self.dictionary = tmp_path / "dictionary.json"
        self.key = SiteKey(SiteFolder(self.path).key())
        self.vault = Vault(self.path)

    def ingest(self, name="chest", **recipe):
        rules = Recipe(clean_pixel_data=False, table=TableRules(study=self.dictionary), **recipe)
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


@pytest.fixture
def filled(site):
    """Ten patients of two images, in folders that are their class."""
    for n in range(20):
        scan(site.src, f"{CLASSES[n // 2 % 2]}/patient{n // 2}/{n}.dcm", f"A{n // 2}", n)
    site.ingest(labels=CLASSES)
    return site


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


def test_the_commands(filled, tmp_path):
    """`site check` shows this site's classes and what was left out; a study is approved as for a table."""
    scan(filled.src, "more/20.dcm", "A10", 20)
    filled.ingest(labels=CLASSES)
    policy = SiteFolder(filled.path).policy()
    limits = policy.limits.model_copy(
        update={"minimum_patients": 5, "families": ("moments",), "trust": ("secure-sum",)}
    )
    limits = limits.model_copy(update={"epsilon_per_study": 4.0, "epsilon_lifetime": 4.0})
    policy = policy.model_copy(update={"limits": limits})
    (filled.path / "site.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True)))
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(SEVERAL.model_dump(mode="json")))
    shown = medsynx("site", "check", "--dir", filled.path, study, "--dataset", "chest")
    assert shown.returncode == 0, shown.stderr
    assert "20 images of 10 patients; 0 above" in shown.stdout and "flat: 10, upright: 10" in shown.stdout
    assert "1 images left out: no label" in shown.stdout
    told = json.loads(medsynx("site", "check", "--dir", filled.path, study, "--dataset", "chest", "--json").stdout)
    assert (
        told["images"] == 20 and told["classes"] == {"flat": 10, "upright": 10} and told["left_out"] == {"no label": 1}
    )
    assert medsynx("site", "approve", "--dir", filled.path, study, "--dataset", "chest", "--yes").returncode == 0
    audit = json.loads(medsynx("site", "audit", "--dir", filled.path, "--json").stdout)
    assert not [e for e in audit if e["kind"] == "message"], "nothing was sent"
