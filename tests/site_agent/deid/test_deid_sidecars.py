"""JSON sidecars: known keys, short numbers, words of the vocabulary."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from site_agent.deid.nifti import clean_nifti
from site_agent.deid.profile import Profile
from site_agent.deid.recipe import Recipe
from site_agent.deid.sidecars import clean_sidecar
from tests.site_agent.deid.helpers import FAMILY, KEY, OTHER

NO_FACES = Recipe(clean_recognizable_visual_features=False)


def kept(body):
    recipe = Recipe()
    out = clean_sidecar(json.dumps(body).encode(), "sub-1/sub-1_T1w.json", recipe, Profile(recipe), KEY)
    return json.loads(out.data), out


@pytest.mark.parametrize(
    "key",
    ["Echo\nTime", "Echo Time", "Echo-Time", "EchoTime ", "1EchoTime", "_EchoTime", "", FAMILY, f"EchoTime{FAMILY}", f"EchoTime_{FAMILY.lower()}",
     "EchoTime1974", "Echo\u00e9Time", "EchoTime\u0661", "E" * 80, "ABCDEFG", "A_B_C_D_E_F", "PatientName", "DeviceSerialNumber"],
)  # fmt: skip
def test_a_key_that_is_no_word_of_ours_goes_with_its_value(key):
    body, out = kept({key: 1, "Nested": {key: 1}, "SliceTiming": [{key: 1}]})
    assert key not in json.dumps(body) or not key
    assert key not in out.kept and key not in body and key not in body.get("Nested", {})


def test_known_keys_stay_at_every_depth():
    body, out = kept(
        {
            "EchoTime": 0.03,
            "EchoTime2": 0.04,
            "B0FieldIdentifier": 1,
            "Sequence_Name": "tfl",
            "Slices": {"EchoTime": 1.5},
        }
    )
    assert body["EchoTime"] == 0.03 and body["EchoTime2"] == 0.04
    assert out.kept["EchoTime"] == 2 and set(out.kept) <= {"EchoTime", "EchoTime2", "Slices"}


@pytest.mark.parametrize(
    "value",
    [1234567, 1234567.0, -1234567, 19740312, 19740312.0, 1.9740312e7, 4711815.5, 1e300, float("inf"), float("nan")],
)
def test_a_long_number_goes(value):
    body, _ = kept({"EchoTime": value, "SliceTiming": [0, value], "Nested": {"EchoTime": value}})
    assert "EchoTime" not in body and "SliceTiming" not in body and not body.get("Nested")


@pytest.mark.parametrize("value", [0, 3, 999999, 120.0, 0.030000001, 0.0123456789, 123.25, -0.70710678, True, False])
def test_a_measured_number_stays(value):
    assert kept({"EchoTime": value})[0]["EchoTime"] == value


def test_null_stays():
    assert kept({"EchoTime": None})[0] == {"EchoTime": None}


@pytest.mark.parametrize(
    ("age", "wanted"), [(89, 89), (90, 90), (97, 90), (97.5, 90), ("097Y", "090Y"), ("034Y", "034Y"), ("1180M", "090Y")]
)
def test_ages_from_ninety_are_one(age, wanted):
    recipe = Recipe(retain_patient_characteristics=True)
    for body in ({"PatientAge": age}, {"Age": age}, {"Scan": {"Age": age}}):
        raw = clean_sidecar(json.dumps(body).encode(), "a.json", recipe, Profile(recipe), KEY).data.decode()
        assert f"{age}" not in raw or age == wanted
        values = list(_leaves(json.loads(raw)))
        assert all(value == wanted for value in values)
        assert values or age == "1180M"  # not the shape of an age in DICOM, so it goes


def _leaves(body):
    for value in body.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("text", ["brain\x1b[2J", "brain\x00", "brain\x7f", "brain\u009b", "brain\nT1", "brain\u202e"])
def test_control_characters_take_the_text_with_them(text):
    assert "SeriesDescription" not in kept({"SeriesDescription": text})[0]


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
