"""Made-up patients in real DICOM: pydicom's own test files with identifiers planted where a header can hide them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from site_agent.deid.dicom import clean_dicom
from site_agent.deid.engine import Folder, Tally, run
from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.profile import Profile
from site_agent.deid.recipe import Recipe

KEY = SiteKey(bytes(range(32)))
NO_PIXELS = Recipe(clean_pixel_data=False)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: nobody's names: none of these words is in the vocabulary
FAMILY, GIVEN, OTHER, MRN = "Qozivaruk", "Temilopad", "Wubexafin", "M83746152"


def read_test_file(name: str) -> FileDataset:
    """A file pydicom ships."""
    ds = pydicom.dcmread(str(get_testdata_file(name, download=False)), force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
    return ds


def to_bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def clean(ds: Dataset | bytes, **options: Any) -> Cleaned:
    recipe = Recipe(**options)
    return clean_dicom(ds if isinstance(ds, bytes) else to_bytes(ds), recipe, Profile(recipe), KEY)


def reread(cleaned: Cleaned) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(cleaned.data))


def image(
    samples: np.ndarray, photometric: str = "MONOCHROME2", modality: str = "OT", patient: str = MRN, **extra: Any
) -> FileDataset:
    """A secondary capture of these samples: (rows, columns), (rows, columns, 3) or (frames, rows, columns[, 3])."""
    colour = samples.shape[-1] == 3
    frames = samples.shape[0] if samples.ndim == 3 + colour else 0
    rows, columns = samples.shape[1:3] if frames else samples.shape[:2]
    ds = FileDataset("x", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.3"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.StudyDate = (
        patient,
        f"{FAMILY}^{GIVEN}",
        "19500612",
        "20190304",
    )
    ds.Modality, ds.ConversionType = modality, "WSD"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = rows, columns, 3 if colour else 1
    ds.PhotometricInterpretation = photometric
    if colour:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = frames
    bits = samples.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    ds.PixelData = samples.tobytes() + b"\0" * (samples.nbytes % 2)
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in extra.items():
        setattr(ds, keyword, value)
    return ds


def write_text(samples: np.ndarray, text: str, at: tuple[int, int], value: Any, size: int = 22) -> np.ndarray:
    """Draw text into the last two spatial axes of a copy; returns the mask (rows, columns) of its strokes."""
    rows, columns = samples.shape[:2]
    canvas = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(canvas).text((at[1], at[0]), text, fill=255, font=ImageFont.load_default(size))
    mask = np.asarray(canvas) > 127
    samples[mask] = value
    return mask


def smooth(rows: int, columns: int, low: int = 20, high: int = 120, seed: int = 0) -> np.ndarray:
    """A soft picture without strokes, float."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.uniform(low, high, (8, 8)).astype(np.float32))
    return np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC))


def planted(ds: FileDataset) -> list[str]:
    """Put identifiers everywhere a header can hold them; returns what must not be found again."""
    words: list[str] = []

    def word(text: str) -> str:
        words.append(text)
        return text

    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = f"{word(FAMILY)}^{word(GIVEN)}", word(MRN)
    ds.PatientBirthDate, ds.StudyDate, ds.SeriesDate = "19500612", "20190304", "20190305"
    ds.AcquisitionDateTime = "20190306101112"
    words += ["19500612", "20190304", "20190305", "20190306"]
    ds.OtherPatientNames = [f"{word('Kyvorelat')}^A", f"{word('Zanofidum')}^B"]
    ds.PatientAddress = f"12 {word('Hadrowike')} Street"
    ds.AccessionNumber, ds.InstitutionName = word("A774411223"), f"{word('Brolenquist')} Hospital"
    ds.StudyDescription = f"CT head for {FAMILY}, asked by {word('Xelandrop')}"
    ds.SequenceName = word("Vumaketoj")
    ds.ScanOptions = word("PLOXIRA")
    ds.SeriesNumber = "837461"
    block = ds.private_block(0x0009, "ACME 1.0", create=True)
    block.add_new(0x10, "LO", f"{word('Nuzakepti')} private")
    block.add_new(0x11, "UN", f"raw {word('Gimosedal')} bytes".encode())
    deep = Dataset()
    deep.PersonName = f"{word('Jorvatenk')}^Deep"
    middle = Dataset()
    middle.CodeValue, middle.CodingSchemeDesignator, middle.CodeMeaning = "24028007", "SCT", "Right"
    middle.PersonIdentificationCodeSequence = Sequence([deep])
    inner_block = middle.private_block(0x0019, "ACME NEST", create=True)
    inner_block.add_new(0x01, "LO", f"{word('Sulpevarn')} nested")
    top = Dataset()
    top.CodeValue, top.CodingSchemeDesignator, top.CodeMeaning = "69536005", "SCT", "Head"
    top.AnatomicRegionModifierSequence = Sequence([middle])
    ds.AnatomicRegionSequence = Sequence([top])
    local = Dataset()
    local.CodeValue, local.CodingSchemeDesignator, local.CodeMeaning = (
        word("PX99812"),
        "99HOSP",
        f"ward of {word('Tyborinel')}",
    )
    ds.ProcedureCodeSequence = Sequence([local])
    if not ds.file_meta.TransferSyntaxUID.is_implicit_VR:
        ds.add_new(0x00102150, "UN", f"{word('Lothamere')}land ".encode())
    ds.add_new(0x60000022, "LO", f"overlay {word('Rundeschiv')}")
    ds.add_new(0x50003000, "OW", f"curve {word('Mepastrol')}  ".encode())
    ds.add_new(0xFFFCFFFC, "OB", f"{word('Odrakelims')} padding".encode())
    icon = Dataset()
    icon.Rows, icon.Columns, icon.BitsAllocated = 8, 8, 8
    icon.add_new(0x7FE00010, "OB", f"icon {word('Ebrunolakt')}".encode().ljust(64, b"\1"))
    ds.IconImageSequence = Sequence([icon])
    ds.file_meta.SourceApplicationEntityTitle = word("AEFIRTOLM")
    ds.preamble = f"{word('Chalverino')} preamble".encode().ljust(128, b"\0")
    return words


def searchable(data: bytes) -> bytes:
    """The bytes, lower case, and the inflated ones of a deflated file."""
    import zlib

    ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    if ds.file_meta.TransferSyntaxUID.is_deflated:
        start = 144 + int.from_bytes(data[140:144], "little")
        data += zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])
    return data.lower()


def medsynx(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The command as its user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "medsynx", *map(str, arguments)], capture_output=True, text=True, timeout=240, **kwargs
    )


def deid(src: Path, dst: Path, key: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """`medsynx deid ... --json`: exit status and the object."""
    done = medsynx("deid", src, dst, "--key-file", key, "--json", *more)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def files_of(dst: Path) -> list[Path]:
    """The clean files below a destination."""
    return sorted(p for p in dst.rglob("*") if p.is_file() and ".medsynx" not in p.parts and p.parent != dst)


def run_here(roots: list[Path], dst: Path, key: SiteKey = KEY, recipe: Recipe = NO_PIXELS, **more: Any) -> Tally:
    """De-identify into a folder, in this process."""
    return run([Path(r) for r in roots], Folder(dst), "files", key, recipe, **more)
