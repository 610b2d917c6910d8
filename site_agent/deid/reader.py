"""The second reader: what was taken out of a file must be nowhere in the file that was written.

It knows nothing of how the first pass cleans. It collects the values that changed (:class:`Needles`, in memory only) and searches the written
bytes for them: names and words, identifiers, dates in the spellings hospitals use, each in the encodings of the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date

from site_agent.deid.recipe import OPTION_CODES
from site_agent.deid.vocabulary import Vocabulary, built_in

WORDS = re.compile(r"[^\W\d_]{3,}")
NUMBERS = re.compile(r"[0-9A-Za-z]*[0-9][0-9A-Za-z]*")
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
#: our own UIDs are digits by chance; they are looked away before numbers are searched
OWN_UIDS = re.compile(rb"2\.25\.\d{10,39}")
#: what every written file says about its method
OWN_TEXT = re.compile(
    b"|".join(re.escape(t.lower().encode()) for pair in OPTION_CODES.values() for t in pair)
    + rb"|113100|basic application confidentiality profile"
)
PLAIN = Vocabulary()
#: words of a kept file format, seen in every file: never evidence of a leak
FORMAT_WORDS = frozenset(
    "dicom medsynx removed local code exif adobe photoshop jfif niml nifti utf iso xml version".split()
)


@dataclass
class Needles:
    """Values taken out of one file. ``names`` and ``ids`` belong to the patient and are searched in all of the patient's files."""

    names: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)

    def add_name(self, value: str) -> None:
        """A person's name."""
        self.names.update(rare_words(value, least=3))

    def add_id(self, value: str) -> None:
        """An identifier of the patient."""
        self.ids.update(identifiers(value))
        self.names.update(rare_words(value, least=4))

    def add_text(self, value: str) -> None:
        """Any other text."""
        self.words.update(rare_words(value, least=5))
        # six digits are a time of day or a public code; a run the vocabulary would keep is no evidence
        runs = (n for n in identifiers(value) if len(n) >= (8 if n.isdigit() else 6))
        self.words.update(n for n in runs if not PLAIN.knows(n))

    def add_date(self, value: str) -> None:
        """A date as yyyymmdd."""
        if re.match(r"\d{8}", value):
            self.dates.add(value[:8])

    def add_bytes(self, raw: bytes) -> None:
        """Text in a value of unknown type."""
        for run in re.findall(rb"[\x20-\x7e]{5,200}", raw[:65536]):
            self.add_text(run.decode("ascii"))

    @property
    def patient(self) -> frozenset[str]:
        """What all files of this patient are searched for."""
        return frozenset(self.names | self.ids)


def rare_words(value: str, least: int) -> Iterator[str]:
    """Lower-case words that the vocabulary does not hold."""
    for word in WORDS.findall(value):
        low = word.lower()
        if len(low) >= least and low not in built_in() and low not in FORMAT_WORDS:
            yield low


def identifiers(value: str) -> Iterator[str]:
    """Runs with at least five characters, three of them digits: shorter ones are in every file by chance."""
    for run in NUMBERS.findall(value):
        if len(run) >= 5 and sum(c.isdigit() for c in run) >= 3:
            yield run.lower()


def spellings(day: str) -> Iterator[str]:
    """A date (yyyymmdd) as hospitals write it."""
    try:
        d = date(int(day[:4]), int(day[4:6]), int(day[6:8]))
    except ValueError:
        yield day
        return
    y, m, dd = f"{d.year:04d}", f"{d.month:02d}", f"{d.day:02d}"
    yield y + m + dd
    for sep in "-./ ":
        yield sep.join((y, m, dd))
        yield sep.join((dd, m, y))
        yield sep.join((m, dd, y))
    month = MONTHS[d.month - 1]
    yield from (f"{dd}-{month}-{y}", f"{dd} {month} {y}", f"{d.day} {month} {y}", f"{month} {d.day}, {y}")


def encodings(text: str, charsets: Iterable[str]) -> Iterator[bytes]:
    """The text as bytes in every encoding a written file could carry it in."""
    if text.isascii():  # one spelling in every encoding of DICOM
        yield text.encode("ascii")
        yield text.encode("utf-16-le")
        return
    for codec in ("utf-8", "latin-1", "utf-16-le", *charsets):
        try:
            raw = text.encode(codec)
        except (UnicodeEncodeError, LookupError):
            continue
        if len(raw) >= 3:
            yield raw


def found(
    blob: bytes, needles: Needles, *, kept_dates: Iterable[str] = (), payload: bytes = b"", charsets: Iterable[str] = ()
) -> str | None:
    """Search what was written.

    Args:
        blob: headers and everything else that is not a pixel or a sample, uncompressed.
        needles: values that must not be there.
        kept_dates: dates the first pass wrote on purpose; a shifted date can equal another date of the source.
        payload: pixels or samples as written; only long values are searched here, short ones occur in noise.
        charsets: Python codecs of the source, beside UTF-8, Latin-1 and UTF-16.

    Returns:
        The kind of value that was found (``name``, ``id``, ``text``, ``date``), never the value.
    """
    low = OWN_TEXT.sub(b"", OWN_UIDS.sub(b"", blob).lower())
    charsets = tuple(charsets)
    for kind, values in (("name", needles.names), ("id", needles.ids), ("text", needles.words)):
        for value in values:
            if any(_contains(low, raw, len(value)) for raw in encodings(value, charsets)):
                return kind
    for day in needles.dates - {d[:8] for d in kept_dates}:
        if any(s.encode() in low for s in spellings(day)):
            return "date"
    if payload:
        for value in needles.patient:
            if len(value) >= 7 and _in_payload(payload, value):
                return "name" if value in needles.names else "id"
    return None


def _contains(low: bytes, raw: bytes, length: int) -> bool:
    """Numbers and short values must stand alone: their digits occur inside a decimal number by chance."""
    at = low.find(raw)
    if at < 0:
        return False
    if raw.isdigit() and length >= 7:
        return re.search(rb"(?<![0-9.])" + raw + rb"(?![0-9])", low) is not None
    if length >= 7:
        return True
    alone = rb"(?<![0-9a-z.\x80-\xff])" + re.escape(raw) + rb"(?![0-9a-z.\x80-\xff])"
    return re.search(alone, low) is not None


def _in_payload(payload: bytes, value: str) -> bool:
    return any(form.encode() in payload for form in (value, value.upper(), value.capitalize()))
