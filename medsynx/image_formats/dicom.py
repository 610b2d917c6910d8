"""DICOM Secondary Capture (PS3.3, A.8.1), explicit little endian, not compressed.

One draw is one DICOM study of one made-up patient, with a series a class and the images in their order: viewers then show what belongs together.
Each image nevertheless stands for a patient of its own. Nothing refers to a real study, and no date, device or geometry is invented.
"""

from __future__ import annotations

import io
import re

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from medsynx import IMPLEMENTATION_UID, __version__
from medsynx.image_files import Item, Scale
from medsynx.provenance import MARK, Provenance


def encode(item: Item, scale: Scale, about: Provenance) -> dict[str, bytes]:
    """A file that says in its own terms, and in plain words for viewers that know none of them, that it is synthetic."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    _identify(ds, item, about)
    _mark(ds, item, about)
    _picture(ds, item, scale)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return {".dcm": out.getvalue()}


def _identify(ds: Dataset, item: Item, about: Provenance) -> None:
    meta = ds.file_meta = FileMetaDataset()
    ds.SOPClassUID = meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(about.uid(f"image/{item.number}"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION_UID), f"MEDSYNX_{__version__}"[:16]
    ds.PatientName = f"SYNTHETIC^{about.body['study'].upper()[:54]}"
    ds.PatientID, ds.IssuerOfPatientID = f"SYN-{about.root.hex}", "MEDSYNX-SYNTHETIC"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = about.uid("study"), about.uid(f"series/{item.position}")
    ds.StudyID, ds.StudyDescription = "SYN", MARK
    ds.SeriesNumber, ds.InstanceNumber = item.position + 1, item.number
    ds.SeriesDescription = f"SYNTHETIC {_one_value(item.label)}"[:64]
    for unknown in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        setattr(ds, unknown, "")
    ds.ReferringPhysicianName, ds.PatientOrientation, ds.Laterality = "", "", ""


def _mark(ds: Dataset, item: Item, about: Provenance) -> None:
    """Synthetic Data (0008,001C) and its equipment as PS3.3, C.12.1.1 asks: the standard's own flag, allowed in every object."""
    ds.SyntheticData = "YES"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.Modality, ds.ConversionType = "OT", "SYN"  # SYN: synthetic image (C.8.6.1)
    ds.Manufacturer = "MedSynX"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    made = Dataset()
    made.PurposeOfReferenceCodeSequence = [purpose]
    made.Manufacturer, made.SoftwareVersions = "MedSynX", about.body["software"]
    made.ManufacturerModelName = f"{about.body['family']} {about.body['generator_id']}"[:64]
    made.DeviceSerialNumber = about.body["bundle_digest"]
    made.ContributionDescription = about.text
    ds.ContributingEquipmentSequence = [made]
    ds.DerivationDescription = about.text
    ds.ImageComments = f"{MARK}. {_one_value(item.label)}. {about.text}"
    ds.BurnedInAnnotation = "NO"


def _picture(ds: Dataset, item: Item, scale: Scale) -> None:
    colour = item.pixels.ndim == 3
    bits = item.pixels.dtype.itemsize * 8
    ds.set_pixel_data(item.pixels, "RGB" if colour else "MONOCHROME2", bits, generate_instance_uid=False)
    if colour or scale.plain:
        return
    width = scale.slope * scale.peak
    ds.RescaleSlope, ds.RescaleIntercept = _decimal(scale.slope), _decimal(scale.intercept)
    ds.RescaleType = "US"
    ds.WindowCenter, ds.WindowWidth = _decimal(scale.intercept + width / 2), _decimal(width)
    ds.VOILUTFunction = "LINEAR_EXACT"  # the default one asks for a width of at least 1


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _one_value(label: str) -> str:
    """A label without what separates values or lines in DICOM."""
    return re.sub(r"[\\\x00-\x1f\x7f]+", " ", label)
