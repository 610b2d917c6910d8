"""Hospitals' archives for the image demo: DICOM radiographs of made-up people, with a table of their findings.

Identifiers are planted where archives have them: headers, free text, private tags, a scanned letter, the table, and letters burned into pixels.
What was planted is known, so that the demo can say how much of it is left.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onehost.phantoms import FINDINGS, PEAK, chest

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SHAPES = ((112, 96), (120, 104), (104, 104), (128, 112))  #: rows, columns; all images of a patient have the same
SEVERAL_IMAGES, MONOCHROME1, BURNED_IN = 0.08, 0.2, 0.08  #: shares of patients
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Patient:
    """Somebody who does not exist, and how the hospital keeps the radiographs.

    Attributes:
        finding: what they show.
        images: how many there are.
        inverted: stored as MONOCHROME1.
        marked: name and number are burned into the pixels.
    """

    hospital: str
    family: str
    given: str
    number: str
    birth: str
    street: str
    telephone: str
    physician: str
    finding: str
    shape: tuple[int, int]
    images: int
    inverted: bool
    marked: bool

    @property
    def ink(self) -> int:
        """The stored value of burned-in letters: white, which no drawing has."""
        return 0 if self.inverted else PEAK

    def identifiers_in(self, text: bytes) -> int:
        """How many of this patient's identifiers are in these bytes, which are in lower case."""
        words = (self.family, self.given, self.number, self.street, self.telephone, self.physician, self.hospital)
        birth = self.birth.encode()
        # eight digits also turn up by chance inside digests and UIDs
        alone = birth in text and re.search(rb"(?<![0-9a-z])" + birth + rb"(?![0-9a-z])", text)
        return sum(w.lower().encode() in text for w in words) + bool(alone)


def make_patients(hospital: str, count: int, sick: float, seed: int) -> list[Patient]:
    """Made-up patients; ``sick`` is the share with an opacity. Seeded: they only stage the demo."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        several, inverted, marked = (bool(v) for v in rng.random(3) < (SEVERAL_IMAGES, MONOCHROME1, BURNED_IN))
        out.append(
            Patient(
                hospital=f"{hospital.capitalize()} General Hospital",
                family=_word(rng),
                given=_word(rng),
                number=f"{hospital[:2].upper()}{10_000_000 + 100_003 * seed + 1013 * k}",
                birth=f"{rng.integers(1935, 1998)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
                street=f"{rng.integers(1, 99)} {_word(rng)} Lane",
                telephone=f"0{rng.integers(200, 900)} {rng.integers(10**6, 10**7)}",
                physician=_word(rng),
                finding=FINDINGS[int(rng.random() < sick)],
                shape=SHAPES[rng.integers(len(SHAPES))],
                images=int(rng.integers(2, 4)) if several else 1,
                inverted=inverted,
                marked=marked,
            )
        )
    return out


def _word(rng: np.random.Generator) -> str:
    """A name that nobody has."""
    pairs = zip(rng.choice(list(CONSONANTS), 4), rng.choice(list(VOWELS), 4), strict=True)
    return "".join(c + v for c, v in pairs).capitalize() + "q"


def write_archive(folder: Path, patients: list[Patient], seed: int) -> list[tuple[Path, Patient]]:
    """``radiographs/NUMBER/1.dcm`` and on, ``letter.dcm`` of the first patient, and ``findings.csv`` (patient, name, finding).

    Returns:
        Each radiograph's file and its patient.
    """
    rng, out = np.random.default_rng(seed), []
    for patient in patients:
        place = folder / "radiographs" / patient.number
        place.mkdir(parents=True)
        for number in range(1, patient.images + 1):
            out.append((place / f"{number}.dcm", patient))
            _radiograph(patient, number, rng).save_as(out[-1][0], enforce_file_format=True)
    _letter(patients[0]).save_as(folder / "letter.dcm", enforce_file_format=True)
    with (folder / "findings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["patient", "name", "finding"])
        table.writerows([p.number, f"{p.family}, {p.given}", p.finding] for p in patients)
    return out


def _header(p: Patient, sop_class: str) -> Dataset:
    """What every object of a patient says, filled in by hand as archives of some age are."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"{p.family}^{p.given}", p.number, p.birth, ""
    ds.PatientAddress, ds.PatientTelephoneNumbers = p.street, p.telephone
    ds.InstitutionName, ds.ReferringPhysicianName, ds.Manufacturer = p.hospital, p.physician, ""
    ds.StudyID, ds.AccessionNumber, ds.StudyDate, ds.StudyTime = "1", f"A{p.number}", "20240611", "101500"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    return ds


def _radiograph(p: Patient, number: int, rng: np.random.Generator) -> Dataset:
    """One Computed Radiography object."""
    from pydicom.uid import ComputedRadiographyImageStorage

    ds = _header(p, ComputedRadiographyImageStorage)
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CR", "CHEST", "PA", ["L", "F"]
    ds.InstanceNumber, ds.StudyDescription = number, f"Chest PA, {p.given} {p.family}"
    ds.ImageComments = f"Call {p.physician} on {p.telephone}"
    ds.private_block(0x0011, "DEMO ARCHIVE 1.0", create=True).add_new(0x01, "LO", f"{p.family} {p.number}")
    pixels = chest(rng, p.finding, p.shape)
    if p.inverted:
        pixels = (PEAK - pixels).astype(np.uint16)
    if p.marked:
        pixels[_letters(f"{p.family.upper()} {p.number[-4:]}", p.shape)] = p.ink
    ds.BurnedInAnnotation = "NO"  # as so often, that is not true of all
    ds.set_pixel_data(pixels, "MONOCHROME1" if p.inverted else "MONOCHROME2", 12)
    return ds


def _letter(p: Patient) -> Dataset:
    """A scanned letter: nobody can show by machine that it is clean, so it must not come in."""
    from pydicom.uid import EncapsulatedPDFStorage

    ds = _header(p, EncapsulatedPDFStorage)
    ds.Modality, ds.ConversionType, ds.BurnedInAnnotation, ds.DocumentTitle = (
        "DOC",
        "WSD",
        "YES",
        f"Letter on {p.given}",
    )
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = f"%PDF-1.4\n% Dear {p.physician}, {p.given} {p.family} was born on {p.birth}.\n".encode()
    return ds


def _letters(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where a line of text in the upper left corner has ink."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (shape[1], shape[0]), 0)
    ImageDraw.Draw(canvas).text((3, 2), text, fill=255, font=ImageFont.load_default(12))
    return np.asarray(canvas) > 127


def identifiers(files: Iterable[tuple[Path, Patient]]) -> int:
    """How many identifiers these radiographs hold: in their bytes, and a line of letters in their pixels."""
    from pydicom import dcmread

    found = 0
    for path, patient in files:
        found += patient.identifiers_in(path.read_bytes().lower())
        if patient.marked:
            found += bool((dcmread(path).pixel_array == patient.ink).any())
    return found
