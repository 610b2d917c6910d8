"""Places where an identifier can hide in a valid header: each was found open once."""

from __future__ import annotations

import struct
import zlib

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from site_agent.deid import codes
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.vocabulary import Vocabulary
from tests.site_agent.deid.helpers import MRN, OTHER, clean, image, read_test_file, reread, smooth, to_bytes


def ct():
    ds = read_test_file("CT_small.dcm")
    ds.PatientID = MRN
    return ds


def out_of(ds, **options):
    return reread(clean(ds, clean_pixel_data=False, **options))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("head 12 04 65", "head"),
        ("head 3/4/65", "head"),
        ("head 555.0199", "head"),
        ("head 555 019", "head"),
        ("head 123 neck 456 chest 789", "head neck chest"),
        ("head ٣٤٥٦", "head"),
        ("head 93 year old", "head year old"),
        ("head age 93", "head age"),
        ("head for Dr Young", "head for Dr"),
        ("head Q O Z I V A", "head"),
        ("head \x1b$B;3ED", ""),
        # and what a study needs stays
        ("T2 TSE TRA 512x512 5mm TE15", "T2 TSE TRA 512x512 5mm TE15"),
        ("MR head 85 years old", "MR head 85 years old"),
        ("CT 5.0 B30f", "CT 5.0 B30f"),
    ],
)
def test_text_made_of_pieces_that_would_each_pass(text, kept):
    assert Vocabulary().clean(text) == kept
    assert Vocabulary().knows(text) == (kept == text)


def test_a_date_spread_over_the_values_of_one_element():
    ds = ct()
    ds.ProtocolName, ds.StudyDescription, ds.SeriesDescription = "head", "head", ["12", "04", "65"]
    assert not out_of(ds).get("SeriesDescription")


def test_an_identifier_in_groups():
    ds = ct()
    ds.PatientID, ds.SeriesDescription = "457123", "head 45 neck 71 chest 23"
    assert not any(c.isdigit() for c in out_of(ds).SeriesDescription)


@pytest.mark.parametrize("value", ["0007483615", "7483615.0", "+7483615"])
def test_a_number_that_is_the_identifier_in_another_spelling(value):
    ds = ct()
    ds.PatientID = "7483615"
    ds.RescaleType, ds.TableHeight, ds.ExposureTime = "HU", value, "500"
    out = out_of(ds)
    assert not out.get("TableHeight") and out.ExposureTime == 500


def test_a_series_number_as_long_as_an_identifier():
    ds = ct()
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "20240312", "7", "50000"
    out = out_of(ds)
    assert not out.get("SeriesNumber") and out.InstanceNumber == 7 and out.AcquisitionNumber == 50000


def test_pixels_inside_a_sequence_go():
    ds, inner = ct(), image(smooth(64, 64).astype("uint8"))
    item = Dataset()
    item.Rows, item.Columns, item.PixelData = 64, 64, inner.PixelData
    item["PixelData"].VR = "OB"
    ds.SourceImageSequence = Sequence([item])
    assert "PixelData" not in out_of(ds).SourceImageSequence[0]


def test_the_birth_date_in_another_calendar_goes():
    ds = ct()
    ds.PatientBirthDateInAlternativeCalendar, ds.PatientAlternativeCalendar = "3/4/65", "HEBREW"
    assert "PatientBirthDateInAlternativeCalendar" not in out_of(ds)


def test_an_age_over_89_at_any_depth_is_grouped():
    ds, item = ct(), Dataset()
    item.PatientAge = "097Y"
    ds.SourceImageSequence = Sequence([item])
    assert out_of(ds).SourceImageSequence[0].PatientAge == "090Y"


@pytest.mark.parametrize("vr", ["US", "FD", "UL", "AT"])
def test_text_in_numbers_of_another_type_than_the_standards(vr):
    ds, secret = ct(), b"QOZIVARUK TEMILO"
    codes = {"US": "<8H", "FD": "<2d", "UL": "<4L", "AT": "<4L"}
    ds.add_new("SeriesDescription", vr, list(struct.unpack(codes[vr], secret)))
    ds.add_new("Rows", "US", int(ds.Rows))
    assert secret not in to_bytes(out_of(ds)) and "SeriesDescription" not in out_of(ds)


def test_more_numbers_than_an_element_has_places_for():
    ds, secret = ct(), b"QOZIVARUK TEMILO"
    ds.add_new("ExaminedBodyThickness", "FL", list(struct.unpack("<4f", secret)))
    assert secret not in to_bytes(out_of(ds))


def test_a_uid_under_the_standards_root_that_the_standard_does_not_have():
    ds = ct()
    ds.FrameOfReferenceUID, ds.InstanceCreatorUID = "1.2.840.10008.19500612.83746152", "1.2.840.10008.1.2"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.83746152", "1.2.3"
    ds.ReferencedImageSequence = Sequence([item])
    out = out_of(ds)
    assert b"83746152" not in to_bytes(out) and out.FrameOfReferenceUID.startswith("2.25.")


def test_the_modality_in_the_report_is_the_cleaned_one():
    ds = ct()
    ds.Modality = OTHER
    cleaned = clean(ds, clean_pixel_data=False)
    assert OTHER not in cleaned.modality


def test_spectra_stay():
    ds = ct()
    del ds.PixelData
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.2"
    ds.add_new("SpectroscopyData", "OF", struct.pack("<4f", 1, 2, 3, 4))
    assert len(out_of(ds).SpectroscopyData) == 16


def test_a_deflated_object_that_unpacks_without_end(monkeypatch):
    from site_agent.deid import dicom

    monkeypatch.setattr(dicom, "MOST_INFLATED", 1 << 20)
    ds = read_test_file("image_dfl.dcm")
    ds.PatientID = MRN
    data = to_bytes(ds)
    clean(data)  # the file itself is small enough
    start = 144 + int.from_bytes(data[140:144], "little")
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    tail = bomb.compress(b"\0" * (8 << 20)) + bomb.flush()
    # a wrong or missing length of the file meta group does not hide where the deflated part begins
    for head in (data[:start], data[:140] + b"\xff\xff\0\0" + data[144:start], data[:132] + data[144:start]):
        with pytest.raises(Quarantine) as refused:
            clean(head + tail)
        assert refused.value.reason == "too-large"


@pytest.mark.parametrize(
    ("scheme", "code", "public"),
    [
        ("DCM", "121071", True),
        ("DCM", "837461", False),
        ("DCM", "QOZIVARUK", False),
        ("SCT", "80891009", True),  # heart
        ("SCT", "80891008", False),
        ("SRT", "T-32000", True),
        ("99SDM", "T-83746", False),
        ("LN", "18748-4", True),
        ("LN", "18748-3", False),
        ("UCUM", "mm", True),
        ("UCUM", "10*-6.mm2/s", True),
        ("UCUM", "kBq/mL", True),
        ("UCUM", "QOZIVARUK", False),
        ("UCUM", "{QOZIVARUK}", False),
        ("UCUM", "{counts}/s", True),
        ("UMLS", "C8374615", False),
        ("99ACME", "1", False),
    ],
)
def test_a_code_stays_when_anybody_can_look_it_up(scheme, code, public):
    assert codes.is_public(scheme, code, Vocabulary().knows) == public


def test_a_two_letter_name_is_denied():
    ds = ct()
    ds.PatientName, ds.SeriesDescription = "Ax^Wu", "AX head"
    assert out_of(ds).SeriesDescription == "head"


def test_a_patient_with_and_without_an_issuer_is_one_under_the_default():
    a, b = ct(), ct()
    a.IssuerOfPatientID, b.IssuerOfPatientID = "NORTH", ""
    assert out_of(a).PatientID != out_of(b).PatientID
    assert out_of(a, default_issuer="NORTH").PatientID == out_of(b, default_issuer="NORTH").PatientID


def test_bytes_behind_the_last_rle_sample_go():
    from pydicom.encaps import encapsulate, generate_frames

    ds = read_test_file("MR_small_RLE.dcm")
    ds.PatientID = MRN
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame + b"QOZIVARUK TEMILOPAD "])
    assert b"QOZIVARUK" not in clean(ds).data
