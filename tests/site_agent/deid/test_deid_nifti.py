"""NIfTI: no text, no extension, no face; the brain and the geometry stay."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from site_agent.deid.faces import find_face
from site_agent.deid.nifti import clean_nifti
from site_agent.deid.profile import Profile
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from site_agent.deid.sidecars import clean_sidecar
from tests.site_agent.deid.helpers import FAMILY, KEY, OTHER

DATA = Path(str(importlib.util.find_spec("pydeface").submodule_search_locations[0])) / "data"  # type: ignore[union-attr,index]
SHIPPED = Path(nib.__file__).parent / "tests" / "data"
NO_FACES = Recipe(clean_recognizable_visual_features=False)


@pytest.fixture(scope="module")
def head():
    """A real face: the mean of many heads that pydeface's wheel ships, at 2 mm, turned and moved."""
    image = nib.load(DATA / "mean_reg2mean.nii.gz")
    volume = np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.int16)
    from scipy.spatial.transform import Rotation

    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [8, -6, 10], degrees=True).as_matrix()
    turned[:3, 3] = [12, -9, 15]
    return nib.Nifti1Image(volume, turned @ image.affine @ np.diag([2, 2, 2, 1]))


def cleaned(image, name="scan.nii.gz", recipe=NO_FACES):
    raw = image.to_bytes()
    out = clean_nifti(gzip.compress(raw) if name.endswith("gz") else raw, name, recipe, KEY)
    data = gzip.decompress(out.data) if name.endswith("gz") else out.data
    return out, type(image).from_bytes(data), data


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float32, np.complex64])
def test_text_goes_and_numbers_stay(kind, dtype):
    voxels = (np.arange(4 * 5 * 6 * 2) % 250).reshape(4, 5, 6, 2).astype(dtype)
    affine = np.array([[2, 0.1, 0, -9], [0, 3, 0, 4], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    image = kind(voxels, affine)
    image.header.set_data_dtype(dtype)
    image.header["descrip"], image.header["aux_file"] = f"{FAMILY} 1950".encode(), OTHER.encode()
    image.header["intent_name"] = b"Kyvorelat"
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"seen with {OTHER}".encode()))
    for name in ("a.nii", "a.nii.gz"):
        out, back, data = cleaned(image, name)
        for word in (FAMILY, OTHER, "Kyvorelat"):
            assert word.encode() not in data
        assert not back.header.extensions and np.array_equal(np.asarray(back.dataobj), voxels)
        assert np.allclose(back.affine, affine) and back.header.get_zooms() == image.header.get_zooms()
        assert back.header.get_xyzt_units() == ("mm", "sec")
        assert out.actions["extensions removed"] == 1


def test_scaled_integers_keep_their_scale():
    image = nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()
    out = clean_nifti(bytes(raw), "a.nii", NO_FACES, KEY)
    before, after = (nib.Nifti1Image.from_bytes(bytes(b)).get_fdata() for b in (raw, out.data))
    assert np.array_equal(before, after) and before.max() == 63 * 0.5 - 3


def test_gzip_names_nothing():
    import io

    buffer = io.BytesIO()
    with gzip.GzipFile(f"{FAMILY}.nii", "wb", fileobj=buffer, mtime=1e9) as f:
        f.write(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    assert FAMILY.encode() in buffer.getvalue()
    out = clean_nifti(buffer.getvalue(), f"{FAMILY}.nii.gz", NO_FACES, KEY)
    assert FAMILY.encode() not in out.data and out.data[4:8] == b"\0\0\0\0" and FAMILY not in out.name


def test_a_face_is_removed_and_the_rest_stays(head):
    out, back, _ = cleaned(head, recipe=Recipe())
    before, after = np.asarray(head.dataobj), np.asarray(back.dataobj)
    assert out.notes["face"] == "face removed" and out.notes["fit"] < -0.6 and out.changed_pixels
    changed = before != after
    assert (after[changed] == 0).all() and np.allclose(back.affine, head.affine, atol=1e-4)
    # in the head's own frame: voxels of the template's face are gone, the upper half and the back are untouched
    mask = np.asarray(nib.load(DATA / "facemask.nii.gz").dataobj)[::2, ::2, ::2][
        : before.shape[0], : before.shape[1], : before.shape[2]
    ]
    face = (mask == 0) & (before > 60)
    assert changed[face].mean() > 0.95
    assert not changed[:, :, int(before.shape[2] * 0.62) :].any() and not changed[:, : before.shape[1] // 2].any()
    (_, seen_before, seen_after), *_ = out.pictures
    assert seen_before.shape[2] == seen_after.shape[2] == 3


def test_a_head_whose_face_is_not_found_is_quarantined(head, monkeypatch):
    monkeypatch.setattr("site_agent.deid.faces.FIT", -9.0)
    with pytest.raises(Quarantine) as refused:
        cleaned(head, recipe=Recipe())
    assert refused.value.reason == "head-uncertain"


def test_a_ct_of_a_head_is_quarantined(head):
    hounsfield = np.where(np.asarray(head.dataobj) > 40, 60, -1000).astype(np.int16)
    with pytest.raises(Quarantine) as refused:
        cleaned(nib.Nifti1Image(hounsfield, head.affine), recipe=Recipe())
    assert refused.value.reason == "head-ct"


def test_noise_of_a_heads_size_is_quarantined():
    noise = np.random.default_rng(0).normal(100, 20, (90, 100, 90)).astype(np.float32)
    with pytest.raises(Quarantine):
        find_face(noise, np.diag([2, 2, 2, 1.0]))


@pytest.mark.parametrize("name", ["anatomical.nii", "functional.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_what_is_no_head_passes_untouched(name):
    image = nib.load(SHIPPED / name)
    out = clean_nifti((SHIPPED / name).read_bytes(), name, Recipe(), KEY)
    back = nib.Nifti1Image.from_bytes(gzip.decompress(out.data) if name.endswith("gz") else out.data)
    assert out.notes["face"] == "not a head" and np.array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj))


def test_a_wide_body_is_no_head():
    x, y, _ = np.mgrid[-100:100, -70:70, 0:30]
    body = np.where((x / 90) ** 2 + (y / 60) ** 2 < 1, 100, 0).astype(np.int16)
    assert find_face(body, np.diag([2, 2, 5, 1.0])).kind == "not a head"


@pytest.mark.parametrize(("name", "reason"), [("row_major.dconn.nii", "nifti-unusual")])
def test_cifti_is_quarantined(name, reason):
    with pytest.raises(Quarantine) as refused:
        clean_nifti((SHIPPED / name).read_bytes(), name, Recipe(), KEY)
    assert refused.value.reason == reason


@pytest.mark.parametrize("cut", [400, 300])
def test_a_truncated_volume_is_quarantined(cut):
    raw = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes()[:cut]
    for data in (raw, gzip.compress(raw), gzip.compress(raw)[:-20]):
        with pytest.raises(Quarantine):
            clean_nifti(data, "a.nii", NO_FACES, KEY)


def test_a_volume_and_its_sidecar_keep_one_name_and_one_patient():
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    volume = clean_nifti(image.to_bytes(), f"sub-{FAMILY}/anat/sub-{FAMILY}_T1w.nii", NO_FACES, KEY)
    body = {
        "Manufacturer": "Siemens", "MagneticFieldStrength": 3, "EchoTime": 0.03, "SliceTiming": [0, 0.5], "SeriesDescription": "t1_mprage_sag",
        "PatientName": FAMILY, "PatientID": 12345, "InstitutionName": "Brolenquist", "AcquisitionDateTime": "2019-03-04T10:11:12.5",
        "ProtocolName": f"brain {OTHER}", "Comments": OTHER, FAMILY: 1, "DeviceSerialNumber": "77441", "SeriesInstanceUID": "1.2.3",
        "Nested": {"PatientName": OTHER, "EchoTime": 1.5},
    }  # fmt: skip
    recipe = Recipe()
    side = clean_sidecar(
        json.dumps(body).encode(), f"sub-{FAMILY}/anat/sub-{FAMILY}_T1w.json", recipe, Profile(recipe), KEY
    )
    assert volume.name == side.name and side.name.endswith("_T1w") and volume.patient == side.patient
    kept = json.loads(side.data)
    assert {"Manufacturer", "MagneticFieldStrength", "EchoTime", "SliceTiming", "SeriesDescription"} <= kept.keys()
    assert kept["AcquisitionDateTime"].endswith("T10:11:12.5") and not kept["AcquisitionDateTime"].startswith(
        "2019-03-04"
    )
    for word in (FAMILY, OTHER, "Brolenquist", "12345", "77441", "1.2.3"):
        assert word not in side.data.decode()
