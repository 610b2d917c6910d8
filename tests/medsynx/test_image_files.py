"""Images as NPZ, PNG, DICOM and NIfTI: the same pixels in each, valid files, and nothing that could pass for a patient's."""

import csv
import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from evaluation.programme import priced_plan
from medsynx import image_files
from medsynx.bundle import Bundle, new_key, read_bundle, write_bundle
from medsynx.errors import MedsynxError
from medsynx.image_files import Item, archive, folder_name, to_npz
from medsynx.privacy import statement
from medsynx.provenance import MARK, Provenance
from medsynx.streams import write_whole
from medsynx.study import parse_study
from tests.conftest import RAW_IMAGE_STUDY, RAW_STUDY

KINDS = {"grey": ([12, 11, 1], [0, 255]), "window": ([12, 11, 1], [-1000, 400.5]), "colour": ([12, 11, 3], [0, 1])}
CLASSES = ["flat", "größer\\als: ../x"]


def files_of(kind="grey", private=True):
    """A made-up generator: a Gaussian over three low frequencies."""
    shape, intensity = KINDS[kind]
    image = {"shape": shape, "intensity": intensity, "classes": CLASSES}
    study = parse_study({**RAW_IMAGE_STUDY, "image": image})
    rng, size = np.random.default_rng(0), 9 * shape[2]
    waves = [np.cos(np.pi * np.outer(np.arange(3), np.arange(n) + 0.5) / n) / 3 for n in shape[:2]]
    arrays = {"means": rng.normal(size=(2, size)), "factors": rng.normal(size=(2, size, 4)) / 3}
    held = io.BytesIO()
    np.savez(held, rows=waves[0], columns=waves[1], **arrays)
    privacy = statement(study.privacy, study.rounds.quorum, priced_plan(study), noise=private)
    sampler = {"kind": "dct-gaussian", "file": "moments.npz", "shares": [0.5, 0.5]}
    plain = {"study.json": study.model_dump(mode="json"), "privacy.json": privacy, "sampler.json": sampler}
    return {n: json.dumps(v).encode() for n, v in plain.items()} | {"artefact/moments.npz": held.getvalue()}


def bundle_of(kind="grey", private=True):
    return Bundle({"statement.json": b"signed " + kind.encode(), **files_of(kind, private)}, "ab" * 32)


def unpacked(folder, bundle, form, images=6, seed=1):
    write_whole(folder / "x.zip", archive(bundle, images, seed, form))
    with zipfile.ZipFile(folder / "x.zip") as held:
        assert held.testzip() is None and not [n for n in held.namelist() if ".." in n or n.startswith("/")]
        held.extractall(folder / form)
    with (folder / form / "labels.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == images
    return folder / form, listed


def errors(file):
    done = subprocess.run([Path(sys.executable).parent / "dciodvfy", "-new", str(file)], capture_output=True)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    assert any("SCImage" in line for line in lines), lines
    return [line for line in lines if line.startswith("Error")]


def in_order(folder, listed, read):
    return np.stack([read(folder / row["file"]) for row in listed])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def truth(kind):
    """Intensities and labels of the NPZ of the same draw, and the largest error of 8 or 16 bits."""
    with np.load(io.BytesIO(to_npz(bundle_of(kind), 6, 1)), allow_pickle=False) as arrays:
        images, labels, provenance = arrays["images"], arrays["labels"].tolist(), json.loads(str(arrays["provenance"]))
    assert images.dtype == (np.uint8 if kind == "grey" else np.float32) and provenance["mark"] == MARK
    step = {"grey": 0, "window": 1400.5 / 65535, "colour": 1 / 255}[kind]
    return images, labels, step * 0.51


def test_png(tmp_path, kind, truth):
    images, labels, error = truth
    folder, listed = unpacked(tmp_path, bundle_of(kind), "png")
    stored = in_order(folder, listed, lambda f: np.asarray(Image.open(f)))
    about = json.loads(Image.open(folder / listed[0]["file"]).text["Source"])
    assert stored.dtype == (np.uint16 if kind == "window" else np.uint8)
    assert np.abs(stored * about["slope"] + about["intercept"] - images).max() <= error
    assert [row["label"] for row in listed] == labels and about["label"] == labels[0]
    assert MARK in Image.open(folder / listed[0]["file"]).text["Description"]


def test_nifti(tmp_path, kind, truth):
    images, labels, error = truth
    folder, listed = unpacked(tmp_path, bundle_of(kind), "nifti")
    first = nib.load(folder / listed[0]["file"])
    sidecar = json.loads((folder / listed[0]["file"]).with_suffix(".json").read_text("utf-8"))
    assert first.shape == (12, 11, 1) and [row["label"] for row in listed] == labels
    if kind == "colour":
        held = in_order(folder, listed, lambda f: np.ascontiguousarray(nib.load(f).dataobj)[..., 0])
        values = np.ascontiguousarray(held).view("u1").reshape(images.shape)
        values = values * sidecar["slope"] + sidecar["intercept"]
    else:
        values = in_order(folder, listed, lambda f: nib.load(f).get_fdata()[..., 0])
    assert np.abs(values - images).max() <= error + 1e-4 * (kind == "window"), "a header's slope has 32 bits"
    header = first.header
    assert header["descrip"].item().decode() == f"{MARK} MedSynX {bundle_of(kind).digest[:16]}"
    assert header["intent_name"].item() == b"SYNTHETIC"
    assert json.loads(header.extensions[0].text) == sidecar and sidecar["label"] == labels[0]
    again = sitk.GetArrayFromImage(sitk.ReadImage(folder / listed[0]["file"]))
    assert again.size == images[0].size


def test_dicom(tmp_path, kind, truth):
    images, labels, error = truth
    bundle = bundle_of(kind)
    folder, listed = unpacked(tmp_path, bundle, "dicom")
    read = [pydicom.dcmread(folder / row["file"]) for row in listed]
    for number, (ds, pixels, label) in enumerate(zip(read, images, labels, strict=True), 1):
        values = ds.pixel_array * float(ds.get("RescaleSlope", 1 / 255 if kind == "colour" else 1))
        assert np.abs(values + float(ds.get("RescaleIntercept", 0)) - pixels).max() <= error
        assert ds[0x0008, 0x001C].value == "YES" and list(ds.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        (made,) = ds.ContributingEquipmentSequence
        (purpose,) = made.PurposeOfReferenceCodeSequence
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert purpose.CodeMeaning == "Synthesizing Equipment" and made.DeviceSerialNumber == bundle.digest
        assert ds.InstanceNumber == number and label.replace("\\", " ") in ds.ImageComments
        assert MARK in ds.ImageComments and MARK in ds.DerivationDescription and ds.StudyDescription == MARK
        assert bundle.study.digest in ds.ImageComments and bundle.digest[:32] in made.ContributionDescription
        assert "SourceImageSequence" not in ds and not ds.StudyDate and str(ds.PatientName).startswith("SYNTHETIC^")
    assert len({ds.SOPInstanceUID for ds in read}) == 6 and len({ds.StudyInstanceUID for ds in read}) == 1
    assert len({(ds.SeriesInstanceUID, ds.SeriesDescription) for ds in read}) == 2
    for row in (listed[labels.index(CLASSES[0])], listed[labels.index(CLASSES[1])]):
        assert errors(folder / row["file"]) == []


def test_the_validator_finds_what_is_wrong(tmp_path):
    """The check above can fail."""
    folder, listed = unpacked(tmp_path, bundle_of(), "dicom", images=2)
    ds = pydicom.dcmread(folder / listed[0]["file"])
    del ds.ConversionType
    ds.save_as(tmp_path / "wrong.dcm")
    assert errors(tmp_path / "wrong.dcm")


def test_a_series_opens_in_order(tmp_path):
    folder, listed = unpacked(tmp_path, bundle_of("window"), "dicom", images=13)
    mine = [row["file"] for row in listed if row["label"] == "flat"]
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str((folder / mine[0]).parent))
    names = reader.GetGDCMSeriesFileNames(str((folder / mine[0]).parent), series)
    assert [Path(n).name for n in names] == [Path(f).name for f in mine]
    reader.SetFileNames(names)
    volume = sitk.GetArrayFromImage(reader.Execute())
    with np.load(io.BytesIO(to_npz(bundle_of("window"), 13, 1))) as arrays:
        truth = arrays["images"][arrays["labels"] == "flat"]
    assert volume.shape == truth.shape and np.abs(volume - truth).max() < 0.02, "with the study's intensities"


@pytest.mark.parametrize("form", image_files.ARCHIVES)
def test_one_seed_one_archive(form):
    def made(**change):
        return b"".join(archive(bundle_of(), **{"images": 4, "seed": 5, "form": form} | change))

    assert made() == made() and made(seed=6) != made()
    assert made(seed=None) != made(seed=None)


@pytest.mark.parametrize("form", image_files.ARCHIVES)
def test_one_class_alone(form):
    """Every image is of it; the whole draw's bytes are others."""
    content = b"".join(archive(bundle_of(), 70, 5, form, tuple(CLASSES[1:])))
    with zipfile.ZipFile(io.BytesIO(content)) as held:
        labels = [row["label"] for row in csv.DictReader(io.StringIO(held.read("labels.csv").decode()))]
        about = json.loads(held.read("provenance.json"))
    assert labels == CLASSES[1:] * 70 and about["draw"]["classes"] == CLASSES[1:]
    assert content == b"".join(archive(bundle_of(), 70, 5, form, tuple(CLASSES[1:])))
    with np.load(io.BytesIO(to_npz(bundle_of(), 70, 5, ("flat",)))) as arrays:
        assert set(arrays["labels"]) == {"flat"}


def test_a_class_that_noise_hides_cannot_be_asked_for():
    files = files_of()
    files["sampler.json"] = json.dumps({**json.loads(files["sampler.json"]), "shares": [1.0, 0.0]}).encode()
    bundle = Bundle({"statement.json": b"", **files}, "ab" * 32)
    for make in (lambda c: to_npz(bundle, 2, 1, c), lambda c: archive(bundle, 2, 1, "png", c)):
        for classes in (tuple(CLASSES[1:]), tuple(CLASSES)):
            with pytest.raises(MedsynxError, match="hides how many patients have größer") as caught:
                make(classes)
            assert caught.value.code == "condition-invalid" and "flat" in caught.value.hint


def test_uids_never_name_two_images():
    """Another number or seed gives other pixels under the same index, another bundle other ones altogether."""
    grey, window = bundle_of(), bundle_of("window")
    draws = [(grey, 4, 5), (grey, 4, 6), (grey, 5, 5), (window, 4, 5), (grey, 4, None), (grey, 4, None)]
    draws += [(grey, 4, 5, ("a", "b")), (grey, 4, 5, ("a", "b/c")), (grey, 4, 5, ("a/b", "c"))]
    uids = [Provenance.of(*draw).uid("image/1") for draw in draws]
    assert len(set(uids)) == len(draws) and uids[0] == Provenance.of(*draws[0]).uid("image/1")
    assert all(pydicom.uid.UID(u).is_valid and u.startswith("2.25.") for u in uids)


def test_the_privacy_statement_is_the_bundles():
    bundle = bundle_of()
    guarantee = {g["adversary"]: g["epsilon"] for g in bundle.json("privacy.json")["guarantees"]}
    about = Provenance.of(bundle, 3, 1)
    told = about.body["privacy"]
    assert (told["epsilon_researcher"], told["epsilon_coordinator"]) == (
        guarantee["researcher"],
        guarantee["coordinator"],
    )
    said = [float(w.split()[0]) for w in about.privacy.split("epsilon ")[1:]]
    for value, shown in zip(guarantee.values(), said, strict=True):
        assert 0 <= shown - value < 0.0011, "rounded up, never down"
    assert said[0] != said[1] and "researchers" in about.privacy and "coordinator" in about.privacy
    assert about.text.isascii() and len(about.text) < 600


@pytest.mark.parametrize("form", image_files.ARCHIVES)
def test_noise_off_is_said_in_every_file(tmp_path, form):
    folder, listed = unpacked(tmp_path, bundle_of(private=False), form, images=2)
    raw = (folder / listed[0]["file"]).read_bytes()
    assert b"NONE - noise was off" in raw and b"epsilon 4" not in raw
    assert json.loads((folder / "provenance.json").read_text())["privacy"]["private"] is False


@pytest.mark.parametrize("change", [{"guarantees": []}, {"guarantees": None}, {"epsilon": None}, {"epsilon": math.inf}])
def test_privacy_that_is_not_stated_is_not_claimed(change):
    files = files_of()
    privacy = json.loads(files["privacy.json"])
    if "epsilon" in change:
        privacy["guarantees"][1] |= change
    else:
        privacy |= change
    bundle = Bundle({"statement.json": b"", **files, "privacy.json": json.dumps(privacy).encode()}, "ab" * 32)
    for make in (lambda: to_npz(bundle, 2, 1), lambda: archive(bundle, 2, 1, "png")):
        with pytest.raises(MedsynxError) as caught:
            make()
        assert caught.value.code == "bundle-unreadable"


def test_what_is_refused_is_refused_before_the_first_byte(monkeypatch):
    files = {**files_of(), "study.json": json.dumps(RAW_STUDY).encode(), "statement.json": b""}
    for bundle, images, code in ((Bundle(files, ""), 2, "not-images"), (bundle_of(), 0, "rows-invalid")):
        with pytest.raises(MedsynxError) as caught:
            archive(bundle, images, 1, "dicom")
        assert caught.value.code == code
    monkeypatch.setitem(sys.modules, "pydicom.dataset", None)
    monkeypatch.delitem(sys.modules, "medsynx.image_formats.dicom", raising=False)
    with pytest.raises(MedsynxError, match=r"needs pydicom") as caught:
        archive(bundle_of(), 2, 1, "dicom")
    assert caught.value.code == "install-incomplete"


def test_a_class_may_be_called_anything():
    names = [folder_name(Item(None, 1, label, k)) for k, label in enumerate(["../..", "a/b", "", "x" * 99, "con", "ü"])]
    assert names == ["00-class", "01-a-b", "02-class", "03-" + "x" * 40, "04-con", "05-class"]


def test_a_file_is_whole_or_not_there(tmp_path):
    def breaks():
        yield b"half"
        raise KeyboardInterrupt

    (tmp_path / "x.zip").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x.zip", breaks())
    with pytest.raises(MedsynxError, match="No such file") as caught:
        write_whole(tmp_path / "nowhere" / "x.zip", [b"x"])
    assert caught.value.code == "disk-full"
    assert [f.name for f in tmp_path.iterdir()] == ["x.zip"] and (tmp_path / "x.zip").read_bytes() == b"old"


def test_command_line(tmp_path):
    new_key(tmp_path / "key.pem")
    write_bundle(tmp_path / "b.zip", files_of(), tmp_path / "key.pem")

    def generate(*more):
        command = ["generate", tmp_path / "b.zip", "--rows", 5, "--seed", 2, *more]
        return subprocess.run([sys.executable, "-m", "medsynx", *map(str, command)], capture_output=True, text=True)

    done = generate("--format", "dicom", "--out", tmp_path / "x.zip")
    assert done.returncode == 0 and "5 images" in done.stderr, done.stderr
    assert (tmp_path / "x.zip").read_bytes() == b"".join(archive(read_bundle(tmp_path / "b.zip"), 5, 2, "dicom"))
    one = generate("--out", tmp_path / "one.npz", "--where", f"class={CLASSES[1]}")
    assert one.returncode == 0 and set(np.load(tmp_path / "one.npz")["labels"]) == {CLASSES[1]}, one.stderr
    for wrong in ("class=sideways", "sex=F"):
        refused = generate("--out", tmp_path / "no.npz", "--where", wrong)
        assert refused.returncode == 55 and ", ".join(CLASSES) in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "no.npz").exists()
    for wrong, status in ((("--format", "png", "--out", "x.png"), 68), (("--out", "x.zip"), 56)):
        refused = generate(*wrong)
        assert refused.returncode == status and ".zip" in refused.stderr and "Traceback" not in refused.stderr
