"""The second reader: independent of the first pass, it finds what a broken first pass would leave."""

from __future__ import annotations

import pytest

from site_agent.deid.attributes import Walk
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.reader import Needles, found
from site_agent.deid.recipe import Recipe
from site_agent.deid.sources import Source
from site_agent.deid.vocabulary import Vocabulary
from site_agent.deid.worker import Settings, Worker
from site_agent.deid.written import split
from tests.site_agent.deid.helpers import FAMILY, KEY, MRN, OTHER, clean, read_test_file, to_bytes


def needles(**values):
    n = Needles()
    for name in values.get("names", ()):
        n.add_name(name)
    for value in values.get("ids", ()):
        n.add_id(value)
    for text in values.get("texts", ()):
        n.add_text(text)
    for day in values.get("dates", ()):
        n.add_date(day)
    return n


@pytest.mark.parametrize(
    ("blob", "kind"),
    [
        (b"... qozivaruk ...", "name"),
        (FAMILY.lower().encode("utf-16-le"), "name"),
        (b"id M83746152.", "id"),
        (b"call 0176555123499", "text"),
        (b"on 1950-06-12", "date"),
        (b"am 12.06.1950", "date"),
        (b"06/12/1950", "date"),
        (b"12-JUN-1950", "date"),
        (b"19500612", "date"),
        (b"CT head 19500613", None),
    ],
)
def test_spellings(blob, kind):
    n = needles(names=[FAMILY], ids=[MRN], texts=["0176555123499"], dates=["19500612"])
    assert found(blob, n) == kind


def test_own_uids_and_decimals_are_no_evidence():
    n = needles(ids=["123456"], dates=["19500612"])
    assert found(b"2.25.1950061212345678901234", n) is None
    assert found(b"0.123456789", n) is None and found(b" 123456 ", n) == "id"


def test_short_values_are_not_searched_in_samples():
    n = needles(names=["Abc", FAMILY])
    assert found(b"", n, payload=b"xxabcxx") is None
    assert found(b"", n, payload=b"xx" + FAMILY.encode() + b"xx") == "name"


@pytest.mark.parametrize("hole", ["private", "text", "name", "overlay", "preamble"])
def test_a_hole_in_the_first_pass_is_noticed(hole, monkeypatch, tmp_path):
    """Each promise broken once, on purpose: the file is quarantined, never passed."""
    ds = read_test_file("CT_small.dcm")
    ds.PatientName, ds.StudyDescription = f"{FAMILY}^X", f"CT {OTHER}"
    ds.private_block(0x0009, "ACME", create=True).add_new(0x10, "LO", "anything")
    ds.add_new(0x60000022, "LO", "overlay")
    if hole == "private":
        monkeypatch.setattr(Walk, "_private", lambda self, ds, e, path: None)
    elif hole == "text":
        monkeypatch.setattr(Walk, "_text", lambda self, ds, e, path, action: self._harvest(e))
    elif hole == "name":
        monkeypatch.setattr(Vocabulary, "word", lambda self, word: True)
    elif hole == "overlay":
        real = Walk._element
        monkeypatch.setattr(
            Walk, "_element", lambda self, ds, e, p, c: None if e.tag.group == 0x6000 else real(self, ds, e, p, c)
        )
    file = tmp_path / "x.dcm"
    file.write_bytes(to_bytes(ds))
    worker = Worker(Settings(KEY, Recipe(clean_pixel_data=False), tmp_path))
    if hole == "name":
        ds.StudyDescription = f"CT of {FAMILY}"
        file.write_bytes(to_bytes(ds))
    if hole == "preamble":
        data = b"Q" * 128 + clean(ds, clean_pixel_data=False).data[128:]
        with pytest.raises(Quarantine, match="preamble"):
            split(data, "dicom")
        return
    outcome = worker.run(Source("x.dcm", file, size=file.stat().st_size), "mac")
    assert (outcome.entry.verdict, outcome.entry.reason) == ("quarantined", "left-over") and outcome.aside is None
    monkeypatch.undo()
    assert worker.run(Source("x.dcm", file, size=file.stat().st_size), "mac").entry.verdict == "clean"
