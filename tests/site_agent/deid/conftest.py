"""A hospital's folder of scans and the key of its pseudonyms."""

import pytest

from site_agent.deid.keys import SiteKey
from tests.site_agent.deid.helpers import FAMILY, read_test_file, to_bytes


@pytest.fixture
def key(tmp_path):
    file = tmp_path / "key"
    SiteKey.create(file)
    return file


@pytest.fixture
def src(tmp_path):
    """Two patients, three files, one of them no DICOM."""
    folder = tmp_path / "src"
    (folder / FAMILY).mkdir(parents=True)
    for i, patient in enumerate(("A1", "A1", "B2")):
        ds = read_test_file("CT_small.dcm")
        ds.PatientID, ds.SOPInstanceUID = patient, f"1.2.3.{i}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        (folder / FAMILY / f"{i}.dat").write_bytes(to_bytes(ds))
    return folder
