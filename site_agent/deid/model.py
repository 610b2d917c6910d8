"""What cleaning one file yields."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from site_agent.deid.reader import Needles


@dataclass
class Patient:
    """Whose file it is. ``marks`` are HMACs that tell two people with one identifier apart; ``identifier`` never leaves the process.

    ``named`` is False where the file does not say whose it is and counts as a patient of its own.
    """

    pseudonym: str
    marks: dict[str, str] = field(default_factory=dict)
    identifier: str = ""
    named: bool = True


@dataclass
class Cleaned:
    """A cleaned file, not yet on disk.

    Attributes:
        data: the bytes to write.
        suffix: of the output name, with its dot.
        name: stem of the output name, from the mapped UID or the content.
        kind: dicom, nifti, picture, table or sidecar.
        actions, kept: counts for the report.
        needles: what the second reader searches; never stored.
        patients: pseudonyms of a table's rows; empty for a file of one patient.
        pictures: (caption, before, after).
    """

    data: bytes
    suffix: str
    name: str
    kind: str
    patient: Patient | None = None
    modality: str = ""
    shape: tuple[int, ...] = ()
    actions: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    changed_pixels: bool = False
    needles: Needles = field(default_factory=Needles)
    kept_dates: frozenset[str] = frozenset()
    charsets: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    pictures: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
