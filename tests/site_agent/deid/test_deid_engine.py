"""The command and the engine: verdicts, resuming, archives, discs, and bad input of every kind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer
from pydicom.data import get_testdata_file

from medsynx.errors import MedsynxError
from site_agent.deid.cli import deid as command
from site_agent.deid.engine import Folder, run
from site_agent.deid.keys import SiteKey
from site_agent.deid.recipe import Recipe
from site_agent.deid.sources import Source, find
from site_agent.deid.worker import Settings, Worker, seal, unseal
from tests.site_agent.deid.helpers import (
    FAMILY,
    KEY,
    MRN,
    NO_PIXELS,
    deid,
    files_of,
    image,
    medsynx,
    read_test_file,
    run_here,
    smooth,
    to_bytes,
)

SHIPPED = Path(str(get_testdata_file("CT_small.dcm"))).parent


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_command(src, tmp_path, key):
    (src / "notes.bin").write_bytes(b"\0\1\2 nothing")
    before, dst, names = snapshot(src), tmp_path / "dst", tmp_path / "map.json"
    status, said = deid(src, dst, key, "--map", names)
    assert status == 80 and (said["clean"], said["quarantined"], said["failed"]) == (3, 1, 0)
    assert said["reasons"] == {"not-recognised": 1} and snapshot(src) == before
    mapping = json.loads(names.read_text())
    assert mapping["notes.bin"] is None and len(set(mapping.values())) == 4
    for name in filter(None, mapping.values()):
        assert (dst / name).stat().st_mode & 0o777 == 0o600
        assert pydicom.dcmread(dst / name).PatientIdentityRemoved == "YES"
        assert FAMILY not in name and "A1" not in Path(name).name
    assert len({Path(n).parent for n in mapping.values() if n}) == 2  # one folder a patient
    (src / "notes.bin").unlink()
    status, said = deid(src, tmp_path / "again", key)
    assert status == 0 and said["quarantined"] == 0


def test_nothing_stored_names_a_source(src, tmp_path):
    run_here([src], tmp_path / "dst")
    for p in (tmp_path / "dst").rglob("*"):
        if p.is_file():
            assert FAMILY.encode() not in p.read_bytes(), p


def test_a_second_run_does_nothing_and_an_added_file_joins_its_patient(src, tmp_path):
    dst = tmp_path / "dst"
    first = run_here([src], dst)
    before = {p: p.stat().st_mtime_ns for p in files_of(dst)}
    again = run_here([src], dst)
    assert again.skipped == 3 and again.outputs == first.outputs
    ds = read_test_file("MR_small.dcm")
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = "A1", read_test_file("CT_small.dcm").PatientName, ""
    (src / "later.dcm").write_bytes(to_bytes(ds))
    third = run_here([src], dst)
    assert third.skipped == 3 and third.verdicts["clean"] == 4
    assert {p: p.stat().st_mtime_ns for p in files_of(dst) if p in before} == before
    assert Path(third.outputs["later.dcm"]).parent == Path(first.outputs[f"{FAMILY}/0.dat"]).parent


def test_a_copy_is_one_file(src, tmp_path):
    shutil.copy(src / FAMILY / "0.dat", src / "copy")
    tally = run_here([src], tmp_path / "dst")
    assert tally.verdicts["clean"] == 4 and tally.outputs["copy"] == tally.outputs[f"{FAMILY}/0.dat"]
    assert len(files_of(tmp_path / "dst")) == 3


def test_two_objects_with_one_uid_are_both_kept(src, tmp_path):
    ds = pydicom.dcmread(src / FAMILY / "0.dat")
    ds.PixelData = bytes(len(ds.PixelData))
    (src / "other").write_bytes(to_bytes(ds))
    tally = run_here([src], tmp_path / "dst")
    assert tally.verdicts["clean"] == 4 and len(files_of(tmp_path / "dst")) == 4


def test_archives_are_walked(src, tmp_path):
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w") as z:
        z.write(src / FAMILY / "2.dat", "deep/2.dat")
    outer = tmp_path / "in" / "disc.zip"
    outer.parent.mkdir()
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(src / FAMILY / "0.dat", "a/0.dat")
        z.write(inner, "inner.zip")
    tally = run_here([outer.parent], tmp_path / "dst")
    assert (
        set(tally.outputs) == {"disc.zip!/a/0.dat", "disc.zip!/inner.zip!/deep/2.dat"} and tally.verdicts["clean"] == 2
    )


def test_bombs_and_locks_are_not_opened(tmp_path):
    src = tmp_path / "in"
    src.mkdir()
    with zipfile.ZipFile(src / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(200 << 20))
    level = tmp_path / "level0.zip"
    with zipfile.ZipFile(level, "w") as z:
        z.writestr("x", b"deep")
    for i in range(1, 5):
        upper = tmp_path / f"level{i}.zip"
        with zipfile.ZipFile(upper, "w") as z:
            z.write(level, level.name)
        level = upper
    shutil.copy(level, src / "nested.zip")
    with zipfile.ZipFile(src / "locked.zip", "w") as z:
        z.writestr("x", b"secret")
    data = bytearray((src / "locked.zip").read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(magic) + at] |= 1  # the flag of encryption
    (src / "locked.zip").write_bytes(data)
    (src / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    tally = run_here([src], tmp_path / "dst")
    assert tally.reasons == {"archive-bomb": 2, "archive-locked": 1, "damaged": 1}


def test_a_disc_is_read_by_its_index(tmp_path):
    disc = SHIPPED / "dicomdirtests"
    index = [s.name for s in find([disc / "DICOMDIR"])]
    assert "DICOMDIR" in index and len(index) > 1 and all((disc / name).exists() for name in index)
    tally = run_here([disc / "DICOMDIR"], tmp_path / "dst", jobs=2)
    assert tally.reasons["dicomdir"] == 1 and tally.verdicts["clean"] > 0


BAD = {
    "empty": (b"", "empty"),
    "text.txt": (b"hello, this is a letter\nabout nobody", "table-undeclared"),
    "random.dcm": (bytes(range(256)) * 8, "not-recognised"),
    "magic only": (b"\0" * 128 + b"DICM", "damaged"),
    "huge length": (b"\0" * 128 + b"DICM" + b"\x10\x00\x10\x00LO\xff\xff\xfe\xff\xff\x7f", "too-large"),
}


@pytest.mark.parametrize("name", [*BAD, "truncated", "truncated in a header", "huge value"])
def test_bad_files_are_quarantined(name, tmp_path):
    src = tmp_path / "in"
    src.mkdir()
    whole = to_bytes(read_test_file("CT_small.dcm"))
    if name in BAD:
        data, reason = BAD[name]
    elif name == "truncated":
        data, reason = whole[: len(whole) // 2], "damaged"
    elif name == "truncated in a header":
        data, reason = whole[:1000], "damaged"
    else:
        at = whole.index(b"\xe0\x7f\x10\x00OW") + 8
        data, reason = whole[:at] + (0x7FFFFFF0).to_bytes(4, "little") + whole[at + 4 :], "too-large"
    (src / name).write_bytes(data)
    tally = run_here([src], tmp_path / "dst")
    assert dict(tally.reasons) == {reason: 1} and files_of(tmp_path / "dst") == []


def test_links_and_what_is_no_file(src, tmp_path):
    (src / "loop").symlink_to(src)
    (src / "self").symlink_to(src / "self")
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(b"not for you")
    (src / "out").symlink_to(outside)
    os.mkfifo(src / "pipe")
    tally = run_here([src], tmp_path / "dst")
    assert tally.reasons == {"link": 3, "not-recognised": 1} and tally.verdicts["clean"] == 3


def test_an_unreadable_file_fails_and_is_tried_again(src, tmp_path, monkeypatch):
    source = next(s for s in find([src]) if s.name.endswith("0.dat"))
    worker = Worker(Settings(KEY, NO_PIXELS, tmp_path))
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "no")))
    outcome = worker.run(source, "mac")
    assert (outcome.entry.verdict, outcome.entry.reason) == ("failed", "unreadable")
    monkeypatch.setattr(Path, "read_bytes", real)
    assert worker.run(source, "mac").entry.verdict == "clean"


def test_a_vanished_file_is_a_failure_with_its_exit_status(src, tmp_path, key):
    (src / "gone").symlink_to(src / "x")  # dangling: reported, never followed
    status, said = deid(src, tmp_path / "dst", key)
    assert status == 80 and said["reasons"] == {"link": 1}


def test_wrong_key_and_changed_recipe_are_refused(src, tmp_path):
    dst = tmp_path / "dst"
    run_here([src], dst)
    with pytest.raises(MedsynxError, match="another key"):
        run_here([src], dst, key=SiteKey(b"y" * 32))
    with pytest.raises(MedsynxError, match="another recipe"):
        run_here([src], dst, recipe=Recipe(clean_pixel_data=False, retain_uids=True))


@pytest.mark.parametrize("content", [b"short", None])
def test_an_unusable_key_is_refused(content, src, tmp_path):
    key = tmp_path / "k"
    key.write_bytes(content or b"x" * 40)
    key.chmod(0o600 if content else 0o644)
    done = medsynx("deid", src, tmp_path / "dst", "--key-file", key)
    assert done.returncode == 82 and "key-unusable" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "dst").exists()


def test_the_key_comes_from_the_environment(src, tmp_path):
    env = {**os.environ, "MEDSYNX_KEY": "0f" * 32}
    done = medsynx("deid", src, tmp_path / "dst", "--json", env=env)
    assert done.returncode == 0, done.stderr
    ds = pydicom.dcmread(files_of(tmp_path / "dst")[0])
    assert ds.PatientID in {SiteKey(bytes.fromhex("0f" * 32)).pseudonym("", p) for p in ("A1", "B2")}


def test_one_run_at_a_time(src, tmp_path):
    place = Folder(tmp_path / "dst")
    with (place.private / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MedsynxError, match="another run"):
            run_here([src], tmp_path / "dst")
    assert run_here([src], tmp_path / "dst").verdicts["clean"] == 3


def test_source_and_destination_inside_each_other_are_refused(src, tmp_path):
    for dst in (src / "out", src, tmp_path):
        with pytest.raises(MedsynxError, match="inside each other"):
            run_here([src], dst)


@pytest.mark.parametrize(
    "fault",
    ["map is a folder", "map in no folder", "map in src", "key in src", "dst in src", "src in dst", "empty", "no src"],
)
def test_a_wrong_path_is_refused_before_any_work(fault, src, tmp_path):
    empty = tmp_path / "empty"
    (empty / "also").mkdir(parents=True)
    wrong = {
        "map is a folder": {"map_file": tmp_path},
        "map in no folder": {"map_file": tmp_path / "no" / "map.json"},
        "map in src": {"map_file": src / "map.json"},
        "key in src": {"key_file": src / "key"},
        "dst in src": {"dst": src / "dst"},
        "src in dst": {"dst": tmp_path},
        "empty": {"src": empty},
        "no src": {"src": tmp_path / "nothing"},
    }[fault]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedsynxError) as refused:
        command(**{"src": src, "dst": tmp_path / "dst", "key_file": tmp_path / "new", **wrong})
    assert refused.value.code == "source-invalid" and sorted(tmp_path.rglob("*")) == before


def test_a_destination_nobody_may_write_to_is_refused(src, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    broken = tmp_path / "broken" / ".medsynx"
    broken.mkdir(parents=True)
    (broken / "catalogue.sqlite").write_bytes(b"no data base " * 100)
    for dst in ("file", "broken"):
        with pytest.raises(MedsynxError) as refused:
            command(src=src, dst=tmp_path / dst, key_file=tmp_path / "new")
        assert refused.value.code == "source-invalid"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "dst")  # the tests may run as root
    with pytest.raises(MedsynxError, match="no permission"):
        run_here([src], tmp_path / "dst")


def test_the_map_is_for_its_owner(src, tmp_path, key):
    with pytest.raises(typer.Exit):
        (src / "odd").write_bytes(b"\0")
        command(src=src, dst=tmp_path / "dst", key_file=key, map_file=tmp_path / "map.json")
    assert (tmp_path / "map.json").stat().st_mode & 0o777 == 0o600


def test_one_identifier_with_two_people_takes_all_its_files_back(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for i, birth in enumerate(("19500612", "19500612", "19720101")):
        ds = image(smooth(64, 64, seed=i).astype(np.uint8), PatientBirthDate=birth, SOPInstanceUID=f"1.2.{i}")
        (src / f"{i}.dcm").write_bytes(to_bytes(ds))
    other = image(smooth(64, 64, seed=9).astype(np.uint8), patient="C3", SOPInstanceUID="1.2.9")
    (src / "9.dcm").write_bytes(to_bytes(other))
    tally = run_here([src], tmp_path / "dst")
    assert tally.reasons == {"two-patients": 3} and tally.verdicts["clean"] == 1
    assert len(files_of(tmp_path / "dst")) == 1 and tally.outputs["0.dcm"] is None


PEOPLE = [
    ([("19500612", "Kyvorelat^A"), ("", "Zanofidum^B")], 2),
    ([("", "Kyvorelat^A"), ("", "Zanofidum^B")], 2),
    ([("19500612", "Kyvorelat^Ann"), ("19720101", "Kyvorelat^Ann")], 2),
    ([("19500612", "Kyvorelat^Ann"), ("19500612", "Zanofidum^Bert")], 0),
    ([("19500612", "Kyvorelat^Ann"), ("19500612", "Zanofidum^Bert"), ("", "Zanofidum^Carl")], 0),
    ([("19500612", "Kyvorelat^Ann"), ("", "KYVORELAT")], 0),
    ([("19500612", "Kyvorelat^Ann"), ("", ""), ("19500612", "")], 0),
]


@pytest.mark.parametrize(("people", "refused"), PEOPLE)
def test_two_people_are_told_apart_by_birth_or_by_name(people, refused, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for i, (birth, name) in enumerate(people):
        ds = image(smooth(64, 64, seed=i).astype(np.uint8), PatientBirthDate=birth, SOPInstanceUID=f"1.2.{i}")
        ds.PatientName = name
        (src / f"{i}.dcm").write_bytes(to_bytes(ds))
    assert run_here([src], tmp_path / "dst").reasons["two-patients"] == refused


def test_an_identifier_with_and_without_an_issuer_is_told(src, tmp_path):
    from site_agent.deid.report import build

    for i, issuer in enumerate(("", "NORTH", "SOUTH")):
        ds = read_test_file("CT_small.dcm")
        ds.PatientID, ds.IssuerOfPatientID, ds.SOPInstanceUID = "A1" if issuer != "SOUTH" else "Z9", issuer, f"1.3.{i}"
        (src / f"{i}.dcm").write_bytes(to_bytes(ds))
    place = Folder(tmp_path / "dst")
    run([src], place, "files", KEY, NO_PIXELS)
    assert build(place.catalogue, place.root, "files", KEY)["notes"]["issuer_missing"] == 1


def test_what_one_file_of_a_patient_hides_another_may_not_show(tmp_path, monkeypatch):
    """The name is in one file's headers and, through a hole made for this test, in the other's text."""
    src = tmp_path / "src"
    src.mkdir()
    for i, name in enumerate((f"{FAMILY}^X", "")):
        ds = image(smooth(64, 64, seed=i).astype(np.uint8), SOPInstanceUID=f"1.2.{i}", PatientBirthDate="")
        ds.PatientName = name
        ds.SeriesDescription = "" if i == 0 else f"CT {FAMILY}"
        (src / f"{i}.dcm").write_bytes(to_bytes(ds))
    recipe = Recipe(clean_pixel_data=False, vocabulary=(FAMILY,))
    tally = run_here([src], tmp_path / "dst", recipe=recipe)
    assert tally.reasons == {"left-over": 1} and tally.outputs["1.dcm"] is None and tally.outputs["0.dcm"]


def test_the_mapping_is_kept_only_when_asked_for_and_sealed(src, tmp_path):
    run_here([src], tmp_path / "plain")
    place = Folder(tmp_path / "plain")
    assert place.catalogue.mapping("files") == {}
    run_here([src], tmp_path / "kept", recipe=Recipe(clean_pixel_data=False, keep_mapping=True))
    sealed = Folder(tmp_path / "kept").catalogue.mapping("files")
    assert {unseal(KEY, v) for v in sealed.values()} == {"A1", "B2"}
    assert unseal(KEY, seal(KEY, MRN)) == MRN
    with pytest.raises(MedsynxError):
        unseal(SiteKey(b"z" * 32), next(iter(sealed.values())))


def test_every_shipped_file_ends_clean_or_with_a_reason(tmp_path, key):
    """All of pydicom's and nibabel's data, headers and pixels."""
    import nibabel

    src = tmp_path / "src"
    src.mkdir()
    for p in sorted(SHIPPED.glob("*.dcm")):
        if p.stat().st_size < 400_000:
            shutil.copy(p, src)
    for p in sorted((Path(nibabel.__file__).parent / "tests" / "data").glob("*.nii*")):
        if p.stat().st_size < 400_000:
            shutil.copy(p, src)
    status, said = deid(src, tmp_path / "dst", key, "--jobs", "2")
    total = len(list(src.iterdir()))
    assert status == 80 and said["failed"] == 0 and said["clean"] + said["quarantined"] == total
    assert said["clean"] > 0.6 * total and "unforeseen" not in said["reasons"] and "left-over" not in said["reasons"]
    assert all(r["reason"] for r in said["refused"])


def test_source_reads_only(src):
    source = next(find([src]))
    assert isinstance(source, Source) and source.read()[128:132] == b"DICM"


def test_dicom_alone_does_not_load_what_volumes_need(src, tmp_path):
    code = (
        "import sys; from pathlib import Path; from site_agent.deid.worker import Worker, Settings\n"
        "from site_agent.deid.keys import SiteKey; from site_agent.deid.recipe import Recipe; from site_agent.deid.sources import find\n"
        "worker = Worker(Settings(SiteKey(b'x' * 32), Recipe(clean_pixel_data=False), Path(sys.argv[2])))\n"
        "assert worker.run(next(find([Path(sys.argv[1])])), 'mac').entry.verdict == 'clean'\n"
        "print(sorted({'SimpleITK', 'nibabel', 'onnxruntime', 'pandas', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(src), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_question_to_the_catalogue_reads_all_of_it(tmp_path):
    """Each is asked once a file: a scan would make a run of n files cost n * n."""
    catalogue = Folder(tmp_path / "dst").catalogue
    asked = []
    catalogue._db.set_trace_callback(asked.append)
    (
        catalogue.done("files", "s"),
        catalogue.same_content("files", "c"),
        catalogue.owner_of("files", "o"),
        catalogue.references("o"),
    )
    catalogue.remove_files([1])
    catalogue._db.set_trace_callback(None)
    plans = [
        r[3]
        for q in asked
        if q.startswith(("SELECT", "DELETE"))
        for r in catalogue._db.execute("EXPLAIN QUERY PLAN " + q)
    ]
    assert len(plans) >= 5 and not [p for p in plans if p.startswith("SCAN") or "(dataset=?)" in p]
    for table in ("mark", "picture", "row_patient"):  # rows that hang on a file go with it
        plan = list(catalogue._db.execute(f"EXPLAIN QUERY PLAN DELETE FROM {table} WHERE file = 1"))
        assert "SEARCH" in plan[0][3]
