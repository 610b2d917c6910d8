"""DICOM headers: nothing planted survives, what training needs does, and the IOD stays whole."""

from __future__ import annotations

import io

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import OPTION_CODES
from tests.site_agent.deid.helpers import (
    FAMILY,
    GIVEN,
    KEY,
    MRN,
    OTHER,
    clean,
    planted,
    read_test_file,
    reread,
    searchable,
    to_bytes,
)

# implicit, explicit, big endian, deflated, RLE, JPEG, JPEG-LS, JPEG 2000; CT, MR, US, SC, NM, RT, SR, ECG, SEG
FILES = """CT_small.dcm MR_small.dcm MR_small_bigendian.dcm MR_small_RLE.dcm image_dfl.dcm JPEG2000.dcm JPEG-lossy.dcm SC_rgb_jpeg_lossy_gdcm.dcm
MR_small_jpeg_ls_lossless.dcm rtplan.dcm rtstruct.dcm rtdose.dcm test-SR.dcm waveform_ecg.dcm liver_1frame.dcm examples_palette.dcm
examples_ybr_color.dcm SC_rgb_gdcm_KY.dcm ExplVR_BigEnd.dcm""".split()


@pytest.mark.parametrize("name", FILES)
def test_nothing_planted_survives(name):
    ds = read_test_file(name)
    words = planted(ds)
    cleaned = clean(ds, clean_pixel_data=False)
    blob = searchable(cleaned.data)
    assert [w for w in words if w.lower().encode() in blob] == []
    out = reread(cleaned)
    assert not any(e.tag.is_private for e in out.iterall())
    assert out.PatientIdentityRemoved == "YES" and out.file_meta.MediaStorageSOPInstanceUID == out.SOPInstanceUID
    assert cleaned.data[:128] == b"\0" * 128


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Böräkünß^Äneas"),
        ("ISO_IR 144", "Люксембургов^Юрий"),
        ("ISO_IR 126", "Διονυσιόπουλος^Νίκος"),
        ("ISO 2022 IR 87", "山田^太郎"),
        ("GB18030", "王小東^明"),
        ("ISO_IR 166", "สมชายดี^ก"),
    ],
)
def test_names_go_in_every_character_set(charset, name):
    ds = read_test_file("CT_small.dcm")
    ds.SpecificCharacterSet = ["", charset] if charset.startswith("ISO 2022") else charset
    codec = pydicom.charset.python_encoding[charset]
    ds.PatientName = name
    ds.StudyDescription = f"CT {name.split('^')[0]} head"
    out = clean(ds, clean_pixel_data=False)
    family = name.split("^")[0]
    for encoding in ("utf-8", codec):
        assert family.encode(encoding) not in out.data
    assert reread(out).StudyDescription == "CT head"


def test_acquisition_attributes_stay():
    ds = read_test_file("CT_small.dcm")
    kept = "Modality KVP SliceThickness PixelSpacing ImageOrientationPatient RescaleSlope RescaleIntercept ImageType Rows Columns"
    before = {k: str(ds[k].value) for k in kept.split()}
    out = reread(clean(ds))
    assert {k: str(out[k].value) for k in kept.split()} == before
    assert out.PixelData == ds.PixelData


def test_dates_move_together_and_intervals_hold():
    a, b = read_test_file("CT_small.dcm"), read_test_file("MR_small.dcm")
    for ds, day in ((a, "20190304"), (b, "20190414")):
        ds.PatientID, ds.PatientName, ds.IssuerOfPatientID = MRN, FAMILY, ""
        ds.StudyDate, ds.AcquisitionDate, ds.AcquisitionTime = day, day[:6] + "20", "101112.5"
    x, y = (reread(clean(ds, clean_pixel_data=False)) for ds in (a, b))
    days = lambda v: pydicom.valuerep.DA(v).toordinal()  # noqa: E731
    assert days(y.StudyDate) - days(x.StudyDate) == 41 and days(x.AcquisitionDate) - days(x.StudyDate) == 16
    assert x.StudyDate != "20190304" and x.AcquisitionTime == "101112.5"
    assert x.PatientID == y.PatientID == KEY.pseudonym("", MRN) and MRN not in x.PatientID
    other = read_test_file("CT_small.dcm")
    other.PatientID, other.StudyDate = "another", "20190304"
    assert reread(clean(other, clean_pixel_data=False)).StudyDate != x.StudyDate


def test_a_date_that_is_none_goes():
    ds = read_test_file("CT_small.dcm")
    ds.InstanceNumber, ds.StudyDate = "12345678", "19990111"
    text = FAMILY[:8].encode()
    data = to_bytes(ds).replace(b"12345678", text).replace(b"19990111", text)
    out = clean(data, clean_pixel_data=False)
    assert not reread(out).get("StudyDate") and text not in out.data


def test_references_still_resolve():
    a, b = read_test_file("CT_small.dcm"), read_test_file("CT_small.dcm")
    b.SOPInstanceUID = "1.2.3.4.5"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = a.SOPClassUID, a.SOPInstanceUID
    b.ReferencedImageSequence = Sequence([item])
    x, y = reread(clean(a, clean_pixel_data=False)), reread(clean(b, clean_pixel_data=False))
    assert y.ReferencedImageSequence[0].ReferencedSOPInstanceUID == x.SOPInstanceUID
    assert x.StudyInstanceUID == y.StudyInstanceUID != a.StudyInstanceUID
    assert x.SOPInstanceUID.startswith("2.25.") and len(x.SOPInstanceUID) <= 64 and x.SOPClassUID == a.SOPClassUID


def test_age_over_89_is_one_group():
    ds = read_test_file("CT_small.dcm")
    ds.PatientBirthDate, ds.StudyDate = "19200101", "20190304"
    assert reread(clean(ds)).PatientAge == "090Y"
    ds.PatientBirthDate = "19800305"
    assert reread(clean(ds)).PatientAge == "038Y"
    assert reread(clean(ds)).PatientBirthDate in ("", None)


def test_no_interval_tells_an_age_over_89():
    """At 88, at 91 and at 92: days between the first and the second would give the age at the second; within a group they stay."""

    def on(day):
        ds = read_test_file("CT_small.dcm")
        ds.PatientBirthDate, ds.StudyDate, ds.AcquisitionDate = "19300101", day, day[:6] + "28"
        out = reread(clean(ds))
        study, acquired = (pydicom.valuerep.DA(v).toordinal() for v in (out.StudyDate, out.AcquisitionDate))
        assert acquired - study == 24
        return study, out.PatientAge

    (first, young), (second, old), (third, _) = on("20180304"), on("20210304"), on("20220304")
    assert (young, old) == ("088Y", "090Y")
    assert third - second == 365 and second - first != 1096


def test_a_descriptor_keeps_its_known_words_only():
    ds = read_test_file("CT_small.dcm")
    ds.SeriesDescription = f"AX T1 FLAIR 5mm {OTHER} 0176-5551234 12.03.1954"
    assert reread(clean(ds)).SeriesDescription == "AX T1 FLAIR 5mm"


def test_a_name_that_is_a_word_of_radiology_is_denied():
    ds = read_test_file("CT_small.dcm")
    ds.PatientName, ds.SeriesDescription = "Chest^Sharp", "chest routine sharp kernel"
    assert reread(clean(ds)).SeriesDescription == "routine kernel"


def test_report_text_goes_and_codes_stay():
    ds = read_test_file("test-SR.dcm")
    ds.PatientID = MRN
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", f"{OTHER} has no finding"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121071", "DCM", "Finding"
    item.ConceptNameCodeSequence = Sequence([name])
    ds.ContentSequence.append(item)
    out = reread(clean(ds))
    last = out.ContentSequence[-1]
    assert last.TextValue == "REMOVED" and last.ConceptNameCodeSequence[0].CodeMeaning == "Finding"
    assert len(out.ContentSequence) == len(ds.ContentSequence)


def test_method_codes_are_true():
    def codes(**options):
        out = reread(clean(read_test_file("CT_small.dcm"), **options))
        return {i.CodeValue for i in out.DeidentificationMethodCodeSequence}, out

    on, out = codes()
    assert {"113100", "113101", "113105", "113107", "113108"} <= on
    assert OPTION_CODES["clean_recognizable_visual_features"][0] not in on  # no face is removed from DICOM
    assert out.LongitudinalTemporalInformationModified == "MODIFIED" and out.BurnedInAnnotation == "NO"
    off, out = codes(
        clean_pixel_data=False, retain_longitudinal_modified_dates=False, retain_patient_characteristics=False
    )
    assert not off & {"113101", "113107", "113108"} and out.LongitudinalTemporalInformationModified == "REMOVED"
    assert not out.get("StudyDate") and "PatientAge" not in out and out.get("BurnedInAnnotation") != "NO"


def test_options_keep_what_they_name_and_nothing_else():
    ds = read_test_file("CT_small.dcm")
    ds.DeviceSerialNumber, ds.InstitutionName, ds.StationName = "SN-774411", "Brolenquist Hospital", "ROOM7"
    plain, device = reread(clean(ds)), reread(clean(ds, retain_device_identity=True))
    place, uids = reread(clean(ds, retain_institution_identity=True)), reread(clean(ds, retain_uids=True))
    assert "DeviceSerialNumber" not in plain and device.DeviceSerialNumber == "SN-774411"
    assert "InstitutionName" not in device and place.InstitutionName == "Brolenquist Hospital"
    assert uids.StudyInstanceUID == ds.StudyInstanceUID and uids.PatientID != ds.PatientID


def test_safe_private_keeps_listed_numbers():
    ds = read_test_file("CT_small.dcm")
    block = ds.private_block(0x0019, "ACME CT", create=True)
    block.add_new(0x10, "DS", "1.5")
    block.add_new(0x11, "LO", OTHER)
    block.add_new(0x12, "DS", "2.5")
    out = reread(clean(ds, retain_safe_private=True, safe_private=["ACME CT (0019,xx10)", "ACME CT (0019,xx11)"]))
    kept = out.private_block(0x0019, "ACME CT")
    assert kept[0x10].value == 1.5 and 0x11 not in kept and 0x12 not in kept


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ds: ds.__setattr__("PatientID", ""), "patient-id-missing"),
        (lambda ds: ds.__setattr__("SOPClassUID", "1.2.3.4"), "sop-class"),
        (lambda ds: ds.__setattr__("SOPClassUID", "1.2.840.10008.5.1.4.1.1.104.1"), "encapsulated-document"),
        (lambda ds: ds.__setattr__("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66"), "raw-data"),
        (lambda ds: ds.__setattr__("PixelData", ds.PixelData[:-200]), "damaged"),
        (lambda ds: ds.add_new(0x60000102, "US", 12), "overlay-embedded"),
    ],
)
def test_doubt_is_quarantined(change, reason):
    ds = read_test_file("CT_small.dcm")
    change(ds)
    with pytest.raises(Quarantine) as refused:
        clean(ds)
    assert refused.value.reason == reason


def test_bytes_behind_the_last_pixel_go():
    ds = read_test_file("CT_small.dcm")
    ds.PixelData += f"{FAMILY} {GIVEN} ".encode()
    out = clean(ds)
    assert FAMILY.encode() not in out.data and len(reread(out).PixelData) == 128 * 128 * 2


def test_comments_in_the_code_stream_go():
    from pydicom.encaps import encapsulate, generate_frames

    for name, comment in (("JPEG-lossy.dcm", b"\xff\xfe"), ("JPEG2000.dcm", b"\xff\x64")):
        ds = read_test_file(name)
        ds.PatientID = ds.PatientID or MRN
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        before = pydicom.pixels.pixel_array(read_test_file("JPEG2000.dcm")) if name == "JPEG2000.dcm" else None
        text = b"\0\1" + OTHER.encode()
        at = 2 if comment == b"\xff\xfe" else 4 + int.from_bytes(frame[4:6], "big")
        ds.PixelData = encapsulate([frame[:at] + comment + (len(text) + 2).to_bytes(2, "big") + text + frame[at:]])
        out = clean(ds)
        assert OTHER.encode() not in out.data
        if before is not None:
            assert (pydicom.pixels.pixel_array(io.BytesIO(out.data)) == before).all()
