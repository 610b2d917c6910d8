"""An image study from NPZ files to bundle, report, images on disk, and what the server says of it."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from fastapi.testclient import TestClient
from sqlmodel import Session

from evaluation import images as judged
from medsynx.bundle import read_bundle
from medsynx.errors import MedsynxError
from medsynx.image_samplers import draw_images
from medsynx.samplers import draw
from medsynx.study import parse_study
from onehost.simulate import simulate
from site_agent.images import prepare_images, read_images
from tests.conftest import RAW_IMAGE_STUDY, stripes


def write(path, count, seed, **more):
    pixels, label = stripes(count, seed, size=24)
    np.savez(path, images=pixels, labels=label, **more)
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k in range(3):
        write(folder / f"{k}.npz", 200, k)
    write(folder / "holdout.npz", 150, 9)
    (folder / "study.yaml").write_text(yaml.safe_dump(RAW_IMAGE_STUDY, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def outcome(desk):
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "STEPS", 30)
        patch.setattr(judged, "SYNTHETIC", 300)
        sites = [desk / f"{k}.npz" for k in range(3)]
        raw = {
            **RAW_IMAGE_STUDY,
            "family": {"name": "mean-embedding", "parameters": {"features": 64, "steps": 20}},
            "evaluation": {},
            "privacy": {**RAW_IMAGE_STUDY["privacy"], "epsilon": 20.0},  # a gate that noise does not close
            "gate": {"min_tstr_auc": 0.7, "max_memorisation": 0.6},
        }
        result = simulate(
            parse_study(raw), sites, desk / "out", holdout=desk / "holdout.npz", seed=1, watch=told.append
        )
    return result, told


def test_from_images_to_bundle_and_report(outcome):
    result, told = outcome
    assert result["sites"] == 3 and result["patients"] == 600 and result["private"] and result["rounds"] == 3
    assert 19 < result["epsilon"] <= 20 and result["gate"]["passed"]
    assert result["tstr_auc"] > 0.8 and result["trtr_auc"] > 0.9 and result["frechet"] > 0
    assert result["bytes_per_site"] == 5 * (2 * (4 * 64 + 1) + 8 + 4 + 2 * 16 + 8 + 44)
    assert result["kernel_distance"] > result["figures"]["direct"]["kernel_distance"]["floor"]
    seen = result["figures"]["federated"]
    assert seen["memorisation"]["value"] < 0.5 and seen["frechet"]["floor"] > 0
    assert result["memorisation"] == round(result["figures"]["direct"]["memorisation"]["value"], 4)
    assert "tvd1" not in result and seen["tstr_auc"]["value"] > 0.8 and "noised" in seen["tstr_auc"]["source"]
    assert {"training the generator", "judging: TSTR"} <= {p.step for p in told}
    page = Path(result["report"]).read_text()
    assert page.count("data:image/png;base64,") == 2 and "Synthetic images of the class upright" in page
    assert "Are training patients remembered?" in page and page.count("Memorisation\n") == 2
    assert "Release gate met" in page and "through the door" in page
    assert "These figures are not private" in page and "class&#39;s mean" in page.replace("'", "&#39;")


def test_each_site_paid_and_wrote_down_what_left(outcome, desk):
    from site_agent.audit import Audit
    from site_agent.ledger import Ledger

    site = desk / "out" / "sites" / "site-01"
    assert 19 < Ledger(site / "ledger.sqlite").spent("table", 1e-5) <= 20
    left = [e for e in Audit(site / "audit.sqlite").chain.entries() if e["kind"] == "released"]
    assert [e["arrays"]["sum"]["bytes"] for e in left] == [
        *(5 * 2 * (4 * 64 + 1), 5 * 8),
        5 * (4 + 2 * 16 + 8 + 44),
    ]


def test_images_on_disk_can_be_a_site_again(outcome, desk):
    def generate(out):
        command = ["generate", outcome[0]["bundle"], "--rows", "50", "--seed", "3", "--out", str(desk / out)]
        return subprocess.run([sys.executable, "-m", "medsynx", *command], capture_output=True, text=True)

    done = generate("a.npz")
    assert done.returncode == 0 and "50 images" in done.stderr
    again = draw_images(read_bundle(Path(outcome[0]["bundle"])), 50, 3)
    raw = read_images(desk / "a.npz")
    assert raw["images"].shape == (50, 12, 12) and raw["images"].dtype == np.uint8
    back = prepare_images(raw, parse_study(RAW_IMAGE_STUDY), b"k" * 32).parts["all"]
    assert np.abs(back.images - again.pixels).max() <= 0.5 / 255 + 1e-6 and (back.codes[:, 0] == again.label).all()
    refused = generate("rows.csv")
    assert refused.returncode == 56 and "Traceback" not in refused.stderr and "images.npz" in refused.stderr


def test_rows_of_an_image_bundle_are_refused(outcome):
    bundle = read_bundle(Path(outcome[0]["bundle"]))
    with pytest.raises(MedsynxError) as caught:
        draw(bundle, 5)
    assert caught.value.code == "not-rows"
    with pytest.raises(MedsynxError) as caught:
        draw_images(bundle, 0)
    assert caught.value.code == "rows-invalid"


def test_the_server_releases_and_serves_images(outcome, desk, tmp_path):
    from server.app import create_app
    from server.auth import service as auth
    from server.folder import ServerFolder
    from server.users import service as users
    from server.users.models import Role

    folder = ServerFolder(tmp_path / "server")
    folder.create()
    app = create_app(folder.path)
    with Session(app.state.engine) as db:
        users.add(db, "c@h.example", "correct horse battery", Role.ADMIN)
        auth.trust(db, desk / "out" / "signing.pem.pub")
    client = TestClient(app)
    login = client.post("/auth/token", data={"username": "c@h.example", "password": "correct horse battery"})
    signed_in = {"Authorization": f"Bearer {login.json()['access_token']}"}
    with open(outcome[0]["bundle"], "rb") as file:
        made = client.post("/generators", files={"bundle": file}, headers=signed_in).json()
    released = client.post(f"/generators/{made['id']}/release", headers=signed_in)
    assert released.status_code == 200, released.text

    def ask(**order):
        return client.post(f"/generators/{made['id']}/samples", json=order, headers=signed_in)

    npz = ask(rows=30, seed=4, format="npz")
    with np.load(io.BytesIO(npz.content)) as arrays:
        assert arrays["images"].shape == (30, 12, 12) and len(arrays["labels"]) == 30
    assert ask(rows=30, seed=4, format="npz").content == npz.content, "same seed, same images"
    for form, suffix in (("png", ".png"), ("dicom", ".dcm"), ("nifti", ".nii")):
        answer = ask(rows=30, seed=4, format=form)
        assert (
            answer.headers["content-type"] == "application/zip"
            and f'stripes-30-{form}.zip"' in answer.headers["content-disposition"]
        )
        with zipfile.ZipFile(io.BytesIO(answer.content)) as held:
            assert sum(name.endswith(suffix) for name in held.namelist()) == 30
            about = json.loads(held.read("provenance.json"))
        assert about["generator_id"] == made["id"] and about["study_digest"] == made["study_digest"]
        assert about["privacy"]["epsilon_researcher"] == made["privacy"]["epsilon"]
        assert about["privacy"]["epsilon_coordinator"] == made["privacy"]["epsilon_coordinator"]
    rows = ask(rows=5)
    assert (rows.status_code, rows.json()["code"]) == (422, "not-rows")
    for form in ("npz", "dicom"):
        assert ask(rows=20_000, format=form).json()["code"] == "rows-invalid"
        strange = ask(rows=2, format=form, conditions={"class": "sideways"})
        assert strange.json()["code"] == "condition-invalid" and "flat, upright" in strange.json()["hint"]
    some = ask(rows=9, seed=4, format="npz", conditions={"class": "flat"})
    with np.load(io.BytesIO(some.content)) as arrays:
        assert list(arrays["labels"]) == ["flat"] * 9


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"images": np.full((60, 12, 12), np.nan)}, "value-not-finite", "60 of 60 images"),
        ({"images": np.zeros((60, 12, 12, 3), np.uint8)}, "images-unreadable", "grey images"),
        ({"images": np.zeros((5, 12, 12)), "labels": np.zeros(5)}, "patients-too-few", "fewer than 20"),
    ],
)
def test_bad_files_are_named_before_anything_runs(desk, tmp_path, change, code, words):
    np.savez(tmp_path / "bad.npz", **{"labels": np.zeros(60, int), **change})
    with pytest.raises(MedsynxError, match=words) as caught:
        simulate(parse_study(RAW_IMAGE_STUDY), [desk / "0.npz", tmp_path / "bad.npz"], tmp_path / "out")
    assert caught.value.code == code and "bad.npz" in caught.value.message


def test_command_line(desk, tmp_path):
    """A class missing at one site, strange labels at another: stated, not fatal."""
    pixels, label = stripes(120, 5)
    np.savez(tmp_path / "flat.npz", images=pixels[label == 0], labels=label[label == 0])
    np.savez(tmp_path / "odd.npz", images=pixels, labels=np.where(np.arange(120) < 3, 8, label))
    command = ["simulate", desk / "study.yaml", "--out", tmp_path / "out", "--json"]
    for site in (desk / "0.npz", tmp_path / "flat.npz", tmp_path / "odd.npz"):
        command += ["--site", site]
    done = subprocess.run([sys.executable, "-m", "medsynx", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["warnings"] == ["site-03: 3 images left out: label outside the study"] and result["rounds"] == 2
    assert result["gate"] == {"passed": False, "checks": []} and result["figures"] == {
        "direct": None,
        "federated": None,
    }
    page = Path(result["report"]).read_text()
    assert "Withheld" in page and "No figure of this generator was measured privately" in page
    command = ["simulate", desk / "study.yaml", "--site", tmp_path / "no.npz", "--out", tmp_path / "out2"]
    bad = subprocess.run([sys.executable, "-m", "medsynx", *map(str, command)], capture_output=True, text=True)
    assert bad.returncode == 29 and "Traceback" not in bad.stderr


def test_a_run_goes_on_where_it_stopped(desk, tmp_path):
    """Before a sum, and after the last one: nothing is asked twice, and the figures are there."""
    from onehost.simulate import make_sites
    from site_agent.service import SiteService
    from strategies.in_process import InProcessFederation
    from strategies.rounds import Run

    study = parse_study({**RAW_IMAGE_STUDY, "evaluation": {}})
    sites = make_sites(study, [desk / f"{k}.npz" for k in range(3)], tmp_path / "sites", strict=False)
    services = {s.name: SiteService(s.folder, simulated=True) for s in sites}
    asked, stop = [], ["covariances", "evaluate: reference", "evaluate: hold-out", None, None]

    class Stopping(InProcessFederation):
        def ask(self, request, sites, deadline):
            if request.step == stop[0]:
                raise KeyboardInterrupt
            asked.append(request.step)
            return super().ask(request, sites, deadline)

    federation = Stopping({name: service.answer for name, service in services.items()})
    while stop:
        try:
            outcome = Run(study, federation, "r1", checkpoint=tmp_path / "c.npz", masked=False).conduct()
        except KeyboardInterrupt:
            assert stop[0]
        stop.pop(0)
    assert asked == ["means", "covariances", "evaluate: reference", "evaluate: hold-out"] and outcome.private
    assert outcome.figures["tstr_auc"]["value"] > 0.8


def test_a_folder_of_pictures_a_class_is_a_site(tmp_path):
    """Sizes and formats may differ; what is no picture, or in no class's folder, is left out and counted."""
    from PIL import Image

    for site in ("a", "b"):
        pixels, label = stripes(80, ord(site), size=24)  # classes of so many stand out of the noise
        for k, (one, code) in enumerate(zip(pixels, label, strict=True)):
            folder = tmp_path / site / RAW_IMAGE_STUDY["image"]["classes"][code] / f"batch{k % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(one).convert("RGB") if k % 3 == 0 else Image.fromarray(one).resize((30, 30))
            picture.save(folder / f"{k}.{'png' if k % 2 else 'jpg'}", quality=95)
    (tmp_path / "a" / "flat" / "Thumbs.db").write_bytes(b"no picture")
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "x.png").write_bytes((tmp_path / "b" / "flat").rglob("*.jpg").__next__().read_bytes())
    study = parse_study(RAW_IMAGE_STUDY)
    result = simulate(study, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert result["patients"] == 160 and result["private"]
    assert [w for w in result["warnings"] if "left out" in w] == [
        "site-01: 1 images left out: label outside the study",
        "site-01: 1 images left out: cannot be decoded",
    ]
    several = parse_study(
        {
            **RAW_IMAGE_STUDY,
            "privacy": {"epsilon": 4, "delta": 1e-5, "max_records_per_patient": 2, "records": "averaged"},
        }
    )
    with pytest.raises(MedsynxError) as caught:
        simulate(several, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert caught.value.code == "column-missing"
