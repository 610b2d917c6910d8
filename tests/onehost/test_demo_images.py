"""The image demo from end to end, as `make demo` runs it, and the archives it begins with."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medsynx.bundle import read_bundle
from onehost.phantoms import BRIGHTEST, DARKEST, FINDINGS, PEAK, chest
from onehost.scans import identifiers, make_patients, write_archive
from tests.medsynx.test_image_files import errors
from tests.onehost.test_demo import left_over


@pytest.mark.federation
@pytest.mark.timeout(600)
def test_four_hospitals_of_radiographs_to_dicom(tmp_path):
    folder = tmp_path / "demo"
    command = ["demo", "--images", "--patients", "200", "--dir", str(folder), "--json"]
    done = subprocess.run([sys.executable, "-m", "medsynx", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["sites"] == ["hillview", "lakeside", "northgate", "riverside"] and summary["patients"] == 200
    assert summary["epsilon"] <= 3.0 < summary["epsilon_coordinator"] < 6
    intake = summary["deidentified"]
    sources = list((folder / "archives").glob("*/radiographs/*/*.dcm"))
    assert intake["clean"] == len(sources) + 4 and intake["reasons"] == {"encapsulated-document": 4}
    assert intake["planted"] == 8 * len(sources) + intake["blanked"] and intake["blanked"] > 10
    assert intake["left"] == 0 and "encapsulated-document" in Path(summary["vault"]).read_text()
    vault = b"".join(p.read_bytes() for p in folder.glob("sites/*/vault/**/*") if p.is_file())
    for source in sources[::25]:
        name = pydicom.dcmread(source).PatientName
        assert name.family_name.encode() in source.read_bytes() and name.family_name.encode() not in vault
    assert read_bundle(Path(summary["bundle"])).private
    page = Path(summary["report"]).read_text()
    assert "Synthetic images of the class opacity" in page and "Privacy statement" in page
    picture = np.asarray(Image.open(summary["picture"]))
    assert picture.shape == (2 * (34 + 2 * 116) + 4, 12 * 116 + 4) and picture.std() > 30
    with zipfile.ZipFile(summary["dicom"]) as held:
        read = {n: pydicom.dcmread(io.BytesIO(held.read(n))) for n in held.namelist() if n.endswith(".dcm")}
        assert len(read) == summary["images"] == 200 and len(held.namelist()) == 202
        held.extractall(tmp_path / "out")
    for ds in read.values():
        assert ds[0x0008, 0x001C].value == "YES" and ds.pixel_array.shape == (28, 28)
        assert "epsilon 3" in ds.ImageComments and summary["generator_id"] in ds.ImageComments + str(ds)
    assert errors(tmp_path / "out" / next(iter(read))) == []
    assert left_over(folder) == ""


@pytest.mark.federation
@pytest.mark.timeout(400)
def test_ctrl_c_while_hospitals_deidentify(tmp_path):
    """Their commands end, and the processes that those started."""
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "medsynx", "demo", "--images", "--patients", "200", "--dir", str(folder), "--json"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as demo:
        until = time.monotonic() + 300
        while not any(folder.glob("sites/*/vault/objects/*/*.dcm")) or len(started := descendants(demo.pid)) < 4:
            assert time.monotonic() < until and demo.poll() is None, "commands and their workers"
            time.sleep(0.1)
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 130
    until = time.monotonic() + 30
    while (left := started & (descendants(1) | descendants(os.getpid()))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left and left_over(folder) == ""


def descendants(pid):
    """Process ids below a process that still run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    children = {}
    for child, parent, state in rows:
        if state[0] != "Z":
            children.setdefault(int(parent), []).append(int(child))
    found, waiting = set(), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def test_archives_hold_what_they_say(tmp_path):
    patients = make_patients("hillview", 60, 0.5, 1)
    files = write_archive(tmp_path, patients, 1)
    assert len(files) == sum(p.images for p in patients) > 60
    assert len({p.number for p in patients}) == len({(p.family, p.given) for p in patients}) == 60
    read = [(pydicom.dcmread(f), p) for f, p in files]
    marked = 0
    for ds, p in read:
        assert ds.pixel_array.shape == p.shape and (ds.BitsStored, ds.BitsAllocated) == (12, 16)
        assert ds.PhotometricInterpretation == ("MONOCHROME1" if p.inverted else "MONOCHROME2")
        assert (ds.pixel_array == p.ink).sum() == 0 or p.marked
        marked += p.marked
    assert {p.inverted for p in patients} == {True, False} and marked
    assert identifiers(files) == 8 * len(files) + marked, "every one is found by the search that must find none later"
    letter = pydicom.dcmread(tmp_path / "letter.dcm")
    assert patients[0].family.encode() in letter.EncapsulatedDocument
    assert (tmp_path / "findings.csv").read_text().count("\n") == 61


def test_what_is_left_is_counted(tmp_path):
    """The demo's own search notices one name in a header and one letter in the pixels."""
    patient = next(p for p in make_patients("hillview", 60, 0.5, 1) if p.marked)
    (file, _), *_ = write_archive(tmp_path, [patient], 1)
    ds = pydicom.dcmread(file)
    blank = np.full(patient.shape, 1000, np.uint16)
    clean = pydicom.Dataset()
    clean.file_meta, clean.SOPClassUID, clean.SOPInstanceUID = ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID
    clean.set_pixel_data(blank, "MONOCHROME2", 12)

    def left(**change):
        for name, value in change.items():
            setattr(clean, name, value)
        clean.save_as(tmp_path / "x.dcm", enforce_file_format=True)
        return identifiers([(tmp_path / "x.dcm", patient)])

    assert left() == 0
    assert left(ImageComments=f"seen with {patient.family.upper()}") == 1
    blank[5, 5] = patient.ink
    assert left(PixelData=blank.tobytes(), PatientBirthDate=patient.birth) == 3


def test_the_two_findings_look_different():
    rng = np.random.default_rng(0)
    seen = {f: np.stack([chest(rng, f, (64, 56)) for _ in range(40)]).astype(float) for f in FINDINGS}
    every = np.concatenate(list(seen.values()))
    assert every.min() >= DARKEST > 0 and every.max() <= BRIGHTEST < PEAK
    assert len(np.unique(every.reshape(80, -1), axis=0)) == 80
    gap = (seen["opacity"].mean(axis=0) - seen["clear"].mean(axis=0)) / (BRIGHTEST - DARKEST)
    assert gap[34:44, 10:20].mean() > 0.12 and abs(gap[:, 36:]).mean() < 0.03
