"""Names for files that carry no identifier of their own: NIfTI, pictures, sidecars, tables. Their old name may name the patient."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Patient
from site_agent.deid.reader import Needles

#: what a BIDS file name may end in (BIDS 1.10, file name templates); it says what was measured, not on whom
BIDS_SUFFIXES = frozenset(
    "T1w T2w FLAIR PDw T2star inplaneT1 bold sbref dwi epi phase1 phase2 phasediff magnitude1 magnitude2 fieldmap asl pet".split()
)
SUFFIXES = re.compile(r"(\.nii|\.tar)?\.[A-Za-z0-9]{1,8}$")


def stem(source: str) -> str:
    """The source's path without its suffix, so that a volume and its sidecar share one."""
    return SUFFIXES.sub("", source)


def output_name(source: str, key: SiteKey) -> str:
    """A pseudonymous name; a volume and its sidecars keep a common one."""
    base = stem(source)
    last = base.rsplit("_", 1)[-1]
    return key.mac("name", base).hex()[:24] + (f"_{last}" if last in BIDS_SUFFIXES else "")


def patient_of(source: str, key: SiteKey) -> Patient:
    """The BIDS subject of the path; without one, the file counts as a patient of its own."""
    m = re.search(r"(?:^|[/_])sub-([A-Za-z0-9]+)", source)
    identifier = m[1] if m else "file " + stem(source)
    return Patient(key.pseudonym("", identifier), {}, identifier, named=m is not None)


def label_of(source: str, labels: tuple[str, ...]) -> str | None:
    """The one folder of the path that is a label a person listed; None where there is none, or where two contradict. No other name is kept."""
    found = {part for part in PurePosixPath(source).parts[:-1] if part in labels}
    return found.pop() if len(found) == 1 else None


def needles_of(source: str) -> Needles:
    """Words and numbers of the file's name, which must not be in what is written."""
    needles = Needles()
    name = PurePosixPath(source).name
    for part in re.split(r"[_\-. ]+", SUFFIXES.sub("", name)):
        needles.add_id(part)
    return needles
