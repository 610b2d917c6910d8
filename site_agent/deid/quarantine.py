"""Why a file is not passed on: one table of reasons. Quarantine is the answer to every doubt."""

from __future__ import annotations

#: reason -> what the privacy officer reads
REASONS: dict[str, str] = {
    # any file
    "empty": "The file has no bytes.",
    "not-recognised": "Neither DICOM, NIfTI, a picture, a table nor a sidecar by its content.",
    "unreadable": "The file cannot be opened: check its permissions.",
    "damaged": "The file ends early or contradicts itself.",
    "too-large": "The file or one of its values claims more than this machine accepts.",
    "crashed": "A decoder stopped on this file; it was tried alone a second time.",
    "unforeseen": "An error we did not foresee; please report it with the detail shown.",
    "left-over": "The second reader found a removed value in what was written.",
    "archive-bomb": "The archive unpacks to far more than its size, or nests too deeply.",
    "archive-locked": "The archive is encrypted.",
    "link": "A symbolic link that leads out of the source or back into it.",
    "withdrawn": "The patient withdrew: see `medsynx site datasets forget`.",
    "two-patients": "One patient identifier is used with different birth dates or names.",
    # DICOM
    "dicomdir": "The index of a disc: its files were read, the index itself is never passed on.",
    "sop-class": "This kind of DICOM object is not on the list of known storage classes.",
    "encapsulated-document": "A PDF, CDA, model or video inside DICOM: its content cannot be shown to be clean.",
    "raw-data": "Raw data of a maker: its content cannot be shown to be clean.",
    "patient-id-missing": "Without a patient identifier the file belongs to nobody.",
    "transfer-syntax": "The pixels are in a transfer syntax that cannot be decoded here.",
    "pixels-undecodable": "The pixels cannot be decoded, so text in them cannot be ruled out.",
    "overlay-embedded": "An overlay hides in unused bits of the pixels.",
    "ultrasound-regions": "The ultrasound regions lie outside the picture and text was found inside them.",
    "text-remains": "Text was still found after blanking.",
    "mostly-text": "More than a quarter of the picture would be blanked.",
    "pixel-rule": "Marked as carrying burned-in text while cleaning of pixels is switched off.",
    # NIfTI
    "nifti-unusual": "A NIfTI whose meaning is in its extensions (CIFTI) or its second file.",
    "head-uncertain": "It may be a head, and the face could not be located with confidence.",
    "head-ct": "A CT of a head: face removal is not proven for CT.",
    "face-remains": "Face removal took out too little or too much.",
    # pictures and tables
    "picture-unusual": "The picture has several pages or a form we cannot write back.",
    "table-undeclared": "No column of the table is in the study's dictionary.",
    "free-text": "A column holds free text and the recipe does not name it.",
    "age-unit": "An age column goes beyond 150 and neither its name nor its title in the dictionary says in which unit.",
    "patient-column": "The table's patient column is missing or empty.",
    "identifier-in-column": "A declared column holds what looks like names, numbers of patients, mail or telephone.",
    "sidecar-unusual": "The sidecar is not a JSON object.",
}


class Quarantine(Exception):
    """Stop on this file. ``detail`` names attributes and counts, never a value."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)
